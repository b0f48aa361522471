#include "tests/faults/trainer_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <vector>

#include "tests/faults/points.h"

extern char** environ;

namespace exact::fault_tests {

TrainerProcess::TrainerProcess(const std::string& endpoint, uint64_t version, uint64_t point) {
  std::array<int, 2> in{}, out{};
  EXACT_CHECK(::pipe2(in.data(), O_CLOEXEC) == 0 && ::pipe2(out.data(), O_CLOEXEC) == 0,
              "no pipes for a trainer");
  std::vector<std::string> words{"/proc/self/exe", "--trainer", endpoint, std::to_string(version),
                                 std::to_string(point)};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  EXPECT_EQ(::posix_spawn(&process_, argv[0], &actions, nullptr, argv.data(), environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  ::close(in[0]);
  ::close(out[1]);
  to_trainer_ = in[1];
  from_trainer_ = out[0];
  segment_name_ = read_line();
}

void TrainerProcess::signal(int number) {
  EXPECT_EQ(::kill(process_, number), 0);
}

void TrainerProcess::kill() {
  if (process_ <= 0) return;
  ::kill(process_, SIGKILL);
  ::waitpid(process_, nullptr, 0);
  process_ = -1;
  ::close(to_trainer_);
  ::close(from_trainer_);
}

std::string TrainerProcess::go_on() {
  EXPECT_EQ(::write(to_trainer_, "\n", 1), 1);
  return read_line();
}

std::string TrainerProcess::read_line() {
  std::string line;
  for (char c = 0; ::read(from_trainer_, &c, 1) == 1 && c != '\n';) line += c;
  return line;
}

int trainer_main(const std::string& endpoint, uint64_t version, uint64_t point) {
  const auto say = [](const std::string& line) {
    const std::string text = line + "\n";
    return ::write(1, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  };
  worker_tests::RawClient client(endpoint);
  client.hello();
  worker_tests::UpdateSteps steps(client, bridge_tests::tiny_config(), version, kBucketBytes);
  const Result<uint64_t> reached = drive_to(steps, point);
  if (!reached) {
    const std::string why = reached.status().to_string() + "\n";
    return ::write(2, why.data(), why.size()) > 0 ? 1 : 2;
  }
  if (!say(steps.ready.segment_name)) return 1;
  char go = 0;
  if (::read(0, &go, 1) != 1) return 0;
  // What the worker said meanwhile of the update's end comes first.
  const auto committed =
      *reached != 0 ? client.take<ipc::UpdateCommitted>(*reached) : steps.commit();
  return say(committed.is_ok() ? "committed" : committed.status().to_string()) ? 0 : 1;
}

}  // namespace exact::fault_tests
