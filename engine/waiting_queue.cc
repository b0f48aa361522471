#include "engine/waiting_queue.h"

#include <algorithm>

namespace exact {
namespace {

constexpr size_t kMaxClients = 1024;

}  // namespace

WaitingQueue::Place WaitingQueue::add_new(SequenceId sequence, int32_t priority, uint32_t client,
                                          int32_t count) {
  if (clients_.size() >= kMaxClients) forget_idle_clients();
  uint64_t& next_turn = clients_[{-priority, client}];
  const uint64_t turn = std::max(next_turn, now_[-priority]);
  next_turn = turn + static_cast<uint64_t>(count);
  return *places_.insert({-priority, true, turn, next_arrival_++, sequence}).first;
}

WaitingQueue::Place WaitingQueue::add_again(SequenceId sequence, int32_t priority, uint64_t age) {
  return *places_.insert({-priority, false, age, 0, sequence}).first;
}

void WaitingQueue::admitted(const Place& place) {
  if (place.is_new) {
    uint64_t& now = now_[place.falling_priority];
    now = std::max(now, place.turn);
  }
  places_.erase(place);
}

// Whoever has no turn ahead of now is as good as new.
void WaitingQueue::forget_idle_clients() {
  std::erase_if(clients_, [this](const auto& client) {
    return client.second <= now_[client.first.falling_priority];
  });
}

}  // namespace exact
