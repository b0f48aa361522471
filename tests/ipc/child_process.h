// child_process.h owns a forked process of a test: runs a function that reports one line of text,
// then waits to be killed. It dies with its owner at the latest.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "kernels/base/check.h"

namespace exact::ipc {

class ChildProcess {
 public:
  // `work` returns the line; what it leaves in static storage or leaks lives until the kill.
  template <class Work>
  explicit ChildProcess(Work work) {
    int ends[2];
    EXACT_CHECK(::pipe(ends) == 0, "no pipe");
    process_ = ::fork();
    EXACT_CHECK(process_ >= 0, "no fork");
    if (process_ == 0) {
      const std::string line = work() + "\n";
      if (::write(ends[1], line.data(), line.size()) < 0) ::_exit(1);
      while (true) ::pause();
    }
    ::close(ends[1]);
    for (char c = 0; ::read(ends[0], &c, 1) == 1 && c != '\n';) line_ += c;
    ::close(ends[0]);
  }
  ~ChildProcess() { kill(); }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  const std::string& line() const { return line_; }

  // SIGKILL: no destructor of the child runs.
  void kill() {
    if (process_ <= 0) return;
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    process_ = -1;
  }

 private:
  pid_t process_ = -1;
  std::string line_;
};

}  // namespace exact::ipc
