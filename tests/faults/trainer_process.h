// trainer_process.h owns a trainer in a process of its own, which a test can kill or stop: this
// test program started again as `--trainer ENDPOINT VERSION POINT`. It takes an update to the point
// (points.h), says so, and waits for a byte before it goes on.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace exact::fault_tests {

class TrainerProcess {
 public:
  // Returns when the trainer has reached the point, or has ended.
  TrainerProcess(const std::string& endpoint, uint64_t version, uint64_t point);
  ~TrainerProcess() { kill(); }
  TrainerProcess(const TrainerProcess&) = delete;
  TrainerProcess& operator=(const TrainerProcess&) = delete;

  bool reached() const { return !segment_name_.empty(); }
  const std::string& segment_name() const { return segment_name_; }
  void signal(int number);
  void kill();  // SIGKILL, and waits for its end
  // Lets it try to commit; what it got: "committed" or the error.
  std::string go_on();

 private:
  std::string read_line();

  pid_t process_ = -1;
  int to_trainer_ = -1, from_trainer_ = -1;
  std::string segment_name_;
};

// What the started program runs; its exit code.
int trainer_main(const std::string& endpoint, uint64_t version, uint64_t point);

}  // namespace exact::fault_tests
