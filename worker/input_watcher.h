// input_watcher.h owns how a worker hears that the program that started it is gone: the standard
// input that it holds open ends, however that program ended.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "kernels/base/result.h"

namespace exact::worker {

class InputWatcher {
 public:
  // Reads `fd` (bytes are dropped) and calls `on_end` once, in another thread, when it ends.
  // device: the system refused.
  static Result<std::unique_ptr<InputWatcher>> start(int fd, std::function<void()> on_end);
  ~InputWatcher();
  InputWatcher(const InputWatcher&) = delete;
  InputWatcher& operator=(const InputWatcher&) = delete;

 private:
  explicit InputWatcher(int stop_fd) : stop_fd_(stop_fd) {}

  int stop_fd_;
  std::thread thread_;
};

}  // namespace exact::worker
