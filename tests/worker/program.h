// program.h owns how a test runs the program `rollout`: its arguments in, exit code and output
// back.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temporary_directory.h"

extern char** environ;

namespace exact::worker_tests {

// A directory of a test's own, which goes when the test ends.
class ScratchDirectory {
 public:
  std::string operator/(const std::string& name) const { return directory_.file(name); }

 private:
  TemporaryDirectory directory_;
};

inline std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A running `rollout`; killed when the test forgets it.
class Program {
 public:
  Program(const ScratchDirectory& directory, const std::vector<std::string>& arguments)
      : out_path_(directory / "stdout"), err_path_(directory / "stderr") {
    std::vector<std::string> words{EXACT_BINARY_DIR "/bin/rollout"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&actions, 1, out_path_.c_str(), kFlags, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err_path_.c_str(), kFlags, 0600);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0) << words[0];
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Program() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      wait();
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // The exit code, or -signal.
  int wait() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  pid_t process() const { return pid_; }
  void signal(int number) { EXPECT_EQ(::kill(pid_, number), 0); }
  std::string out() const { return text_of(out_path_); }
  std::string err() const { return text_of(err_path_); }

  // Waits until standard output or error holds `words`.
  bool says(const std::string& words) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (std::chrono::steady_clock::now() < deadline) {
      if (out().find(words) != std::string::npos) return true;
      if (err().find(words) != std::string::npos) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

 private:
  std::string out_path_, err_path_;
  pid_t pid_ = 0;
};

struct ProgramEnd {
  int exit_code = 0;
  std::string out, err;
};

inline ProgramEnd run_program(const std::vector<std::string>& arguments) {
  const ScratchDirectory directory;
  Program program(directory, arguments);
  const int exit_code = program.wait();
  return {exit_code, program.out(), program.err()};
}

}  // namespace exact::worker_tests
