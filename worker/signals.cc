#include "worker/signals.h"

#include <csignal>
#include <ctime>
#include <utility>

namespace exact::worker {
namespace {

sigset_t watched_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

}  // namespace

void block_termination_signals() {
  const sigset_t signals = watched_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

SignalWatcher::SignalWatcher(std::function<void(int count)> on_signal) {
  thread_ = std::thread([this, on_signal = std::move(on_signal)] {
    const sigset_t signals = watched_signals();
    const timespec wait{0, 50'000'000};  // until done_ is looked at again
    int count = 0;
    while (!done_) {
      if (sigtimedwait(&signals, nullptr, &wait) > 0) on_signal(++count);
    }
  });
}

SignalWatcher::~SignalWatcher() {
  done_ = true;
  thread_.join();
}

}  // namespace exact::worker
