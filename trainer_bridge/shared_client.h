// shared_client.h owns a client that several threads share: one of them waits for events, the
// others submit, cancel and ask meanwhile. Whoever calls interrupts the wait, has the connection to
// itself, and hands it back.
//
// A call that waits for the worker (score, status) holds up the events for so long; none is lost.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "trainer_bridge/client.h"

namespace exact::bridge {

class SharedClient {
 public:
  static Result<std::unique_ptr<SharedClient>> connect(const ClientOptions& options);
  // In a child that was forked it closes nothing: the connection is the parent's.
  ~SharedClient();
  SharedClient(const SharedClient&) = delete;
  SharedClient& operator=(const SharedClient&) = delete;

  // Any thread: call(Client&) alone with the client, its result back. cancelled: closed.
  template <class Call>
  auto with(Call call) -> decltype(call(std::declval<Client&>())) {
    callers_++;
    client_->interrupt();
    std::unique_lock lock(mutex_);
    const auto leave = [this] {
      callers_--;
      turn_.notify_all();
    };
    if (closed_) {
      leave();
      return closed();
    }
    auto result = call(*client_);
    leave();
    return result;
  }

  // One thread: what happened to any rollout. Empty: nothing within the time, or none is in flight.
  // cancelled: closed.
  Result<std::optional<Event>> next_event(std::chrono::milliseconds timeout);

  // Any thread: every call ends as cancelled from now on. Rollouts in flight are the worker's to
  // cancel, after three heartbeats.
  void close();

 private:
  explicit SharedClient(std::unique_ptr<Client> client);
  static Status closed();

  std::unique_ptr<Client> client_;
  std::mutex mutex_;  // who holds it may use the client
  std::condition_variable turn_;
  std::atomic<int> callers_{0};  // that want the client, or have it
  bool closed_ = false;
  pid_t owner_;  // process
};

}  // namespace exact::bridge
