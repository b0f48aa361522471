#include "trainer_bridge/shared_client.h"

#include <unistd.h>

#include <algorithm>

namespace exact::bridge {

SharedClient::SharedClient(std::unique_ptr<Client> client)
    : client_(std::move(client)), owner_(getpid()) {}

SharedClient::~SharedClient() {
  // ZeroMQ's threads are not here: ending its context would wait for them for ever.
  if (getpid() != owner_) (void)client_.release();
}

Result<std::unique_ptr<SharedClient>> SharedClient::connect(const ClientOptions& options) {
  EXACT_ASSIGN(auto client, Client::connect(options));
  return std::unique_ptr<SharedClient>(new SharedClient(std::move(client)));
}

Status SharedClient::closed() {
  return Status(Code::cancelled, "this client is closed: connect another one");
}

Result<std::optional<Event>> SharedClient::next_event(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  std::unique_lock lock(mutex_);
  const bool my_turn = turn_.wait_until(
      lock, deadline, [this] { return closed_ || (callers_ == 0 && client_->in_flight() > 0); });
  if (closed_) return closed();
  if (!my_turn) return std::optional<Event>();
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  auto event = client_->next_event(std::max(left, std::chrono::milliseconds(0)));
  if (event) return std::optional<Event>(std::move(*event));
  const Code code = event.status().code();
  if (code == Code::timeout || code == Code::cancelled) return std::optional<Event>();
  return event.status();
}

void SharedClient::close() {
  callers_++;
  client_->interrupt();
  const std::lock_guard lock(mutex_);
  closed_ = true;
  callers_--;
  turn_.notify_all();
}

}  // namespace exact::bridge
