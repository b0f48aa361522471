// clients.h owns who is connected and what each of them waits for. It sends nothing and knows no
// clock: the server tells it the time.
//
// A client is a peer that has said Hello. It is forgotten when it is silent for too long or can't
// be answered; what it waited for is handed back to be cancelled.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "ipc/messages.h"
#include "kernels/base/result.h"

namespace exact::worker {

using Clock = std::chrono::steady_clock;

// One generate or score request on its way through the engine.
struct InFlight {
  std::string peer;
  uint64_t request_id = 0;  // the client's
  bool is_score = false;
  int32_t samples_left = 0;
  ipc::GenerateReply reply;  // of a generate request: grows as its samples end
};

struct Client {
  std::string name;  // as it calls itself, safe to log
  Clock::time_point heard;
  std::unordered_map<uint64_t, RequestId> requests;  // unanswered, by the client's request_id
};

class Clients {
 public:
  Clients(int32_t max_clients, int32_t max_requests)
      : max_clients_(max_clients), max_requests_(max_requests) {}

  // A Hello. exhausted: too many clients. Saying it again is fine and keeps the requests.
  Status greet(const std::string& peer, const std::string& name, Clock::time_point now);
  // null: has not said Hello. Valid until the next greet or forget.
  Client* find(const std::string& peer);
  size_t count() const { return clients_.size(); }
  std::vector<std::string> silent_since(Clock::time_point time) const;

  // Whether `peer` may have one more request called `request_id`: invalid, or exhausted.
  Status check_room(const std::string& peer, uint64_t request_id);
  // Registers an accepted request; checked: there is room.
  void add(RequestId id, InFlight request);
  InFlight* find_request(RequestId id);
  // Ends a request; checked: it is in flight.
  InFlight take(RequestId id);
  size_t in_flight() const { return in_flight_.size(); }
  std::vector<RequestId> all_requests() const;

  // Forgets the client and its requests, and returns these for the engine to cancel.
  std::vector<RequestId> forget(const std::string& peer);

 private:
  int32_t max_clients_;
  int32_t max_requests_;
  std::unordered_map<std::string, Client> clients_;  // by peer
  std::unordered_map<RequestId, InFlight> in_flight_;
};

}  // namespace exact::worker
