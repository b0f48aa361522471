// clients.h owns who is connected and what each of them waits for. It sends nothing and knows no
// clock: the server tells it the time.
//
// A client is a peer that has said Hello. It is forgotten when it is silent for too long or can't
// be answered; what it waited for is handed back to be cancelled.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "ipc/messages.h"
#include "kernels/base/result.h"
#include "worker/outbox.h"

namespace exact::worker {

using Clock = std::chrono::steady_clock;

// One generate or score request on its way through the engine.
struct InFlight {
  std::string peer;
  uint64_t request_id = 0;  // the client's
  bool is_score = false;
  int32_t samples_left = 0;
  ipc::ReplyMode mode = ipc::ReplyMode::whole;
  std::optional<Clock::time_point> deadline;
  ipc::GenerateReply reply;  // of a generate request: grows as its samples end, in mode whole
};

struct Client {
  uint32_t number = 0;  // of its own among all that ever came: the engine takes turns by it
  std::string name;     // as it calls itself, safe to log
  Clock::time_point heard;
  Outbox outbox;
  Clock::time_point took;  // when it last took a message, or something began to wait for it
  std::unordered_map<uint64_t, RequestId> requests;  // unanswered, by the client's request_id
};

class Clients {
 public:
  Clients(int32_t max_clients, int32_t max_requests, const Outbox::Limits& unsent)
      : max_clients_(max_clients), max_requests_(max_requests), unsent_(unsent) {}

  // A Hello. exhausted: too many clients. Saying it again is fine and keeps the requests.
  Status greet(const std::string& peer, const std::string& name, Clock::time_point now);
  // null: has not said Hello. Valid until the next greet or forget.
  Client* find(const std::string& peer);
  size_t count() const { return clients_.size(); }
  std::vector<std::string> silent_since(Clock::time_point time) const;
  // Those for whom something waits, in no order.
  std::vector<std::string> with_unsent() const;

  // Whether `peer` may have one more request called `request_id`: invalid, or exhausted.
  Status check_room(const std::string& peer, uint64_t request_id);
  // Registers an accepted request; checked: there is room.
  void add(RequestId id, InFlight request);
  InFlight* find_request(RequestId id);
  // Ends a request; checked: it is in flight.
  InFlight take(RequestId id);
  size_t in_flight() const { return in_flight_.size(); }
  std::vector<RequestId> all_requests() const;
  // Requests whose deadline has come; each is named once.
  std::vector<RequestId> take_overdue(Clock::time_point now);
  std::optional<Clock::time_point> next_deadline() const;

  // Forgets the client and its requests, and returns these for the engine to cancel.
  std::vector<RequestId> forget(const std::string& peer);

 private:
  int32_t max_clients_;
  int32_t max_requests_;
  Outbox::Limits unsent_;
  uint32_t next_number_ = 1;
  std::unordered_map<std::string, Client> clients_;  // by peer
  std::unordered_map<RequestId, InFlight> in_flight_;
  std::set<std::pair<Clock::time_point, RequestId>> deadlines_;  // of requests in flight
};

}  // namespace exact::worker
