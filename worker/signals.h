// signals.h owns how SIGTERM and SIGINT reach the worker: a thread of its own waits for them, so no
// code runs inside a signal handler.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace exact::worker {

// Holds both signals back in this thread and in those it starts afterwards, until a SignalWatcher
// takes them: call it first of all.
void block_termination_signals();

class SignalWatcher {
 public:
  // Calls `on_signal(1)` for the first signal, `on_signal(2)` for the second, ..., in another
  // thread, until it is destroyed. One that came since they were blocked counts.
  explicit SignalWatcher(std::function<void(int count)> on_signal);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

}  // namespace exact::worker
