#include "worker/clients.h"

#include <algorithm>
#include <utility>

namespace exact::worker {
namespace {

constexpr size_t kMaxNameBytes = 64;

// Names go to the log: no control characters, no quotes, no spaces, not long.
std::string printable(const std::string& name) {
  std::string safe = name.substr(0, kMaxNameBytes);
  for (char& c : safe) {
    if (c <= ' ' || c > '~' || c == '"' || c == '=') c = '_';
  }
  return safe.empty() ? "unnamed" : safe;
}

}  // namespace

Status Clients::greet(const std::string& peer, const std::string& name, Clock::time_point now) {
  const auto found = clients_.find(peer);
  if (found == clients_.end() && clients_.size() >= static_cast<size_t>(max_clients_)) {
    return Status(Code::exhausted, "the worker has its " + std::to_string(max_clients_) +
                                       " clients: try again when one has gone");
  }
  if (found == clients_.end()) {
    clients_.emplace(peer, Client{next_number_++, {}, now, Outbox(unsent_), now, {}});
  }
  Client& client = clients_.at(peer);
  client.name = printable(name);
  client.heard = now;
  return {};
}

Client* Clients::find(const std::string& peer) {
  const auto found = clients_.find(peer);
  return found == clients_.end() ? nullptr : &found->second;
}

std::vector<std::string> Clients::silent_since(Clock::time_point time) const {
  std::vector<std::string> silent;
  for (const auto& [peer, client] : clients_) {
    if (client.heard < time) silent.push_back(peer);
  }
  return silent;
}

std::vector<std::string> Clients::with_unsent() const {
  std::vector<std::string> peers;
  for (const auto& [peer, client] : clients_) {
    if (!client.outbox.empty()) peers.push_back(peer);
  }
  return peers;
}

Status Clients::check_room(const std::string& peer, uint64_t request_id) {
  const Client* client = find(peer);
  EXACT_CHECK(client != nullptr, "a request of a stranger");
  if (client->requests.contains(request_id)) {
    return Status(Code::invalid, "request_id " + std::to_string(request_id) +
                                     " is in flight already: choose another");
  }
  if (client->requests.size() >= static_cast<size_t>(max_requests_)) {
    return Status(Code::exhausted, std::to_string(max_requests_) +
                                       " requests of this client are unanswered, the most it may "
                                       "have: wait for some of them");
  }
  return {};
}

void Clients::add(RequestId id, InFlight request) {
  Client* client = find(request.peer);
  EXACT_CHECK(client != nullptr && !client->requests.contains(request.request_id),
              "a request without a place");
  client->requests.emplace(request.request_id, id);
  if (request.deadline) deadlines_.emplace(*request.deadline, id);
  in_flight_.emplace(id, std::move(request));
}

InFlight* Clients::find_request(RequestId id) {
  const auto found = in_flight_.find(id);
  return found == in_flight_.end() ? nullptr : &found->second;
}

InFlight Clients::take(RequestId id) {
  const auto found = in_flight_.find(id);
  EXACT_CHECK(found != in_flight_.end(), "a request that is not in flight");
  InFlight request = std::move(found->second);
  in_flight_.erase(found);
  if (request.deadline) deadlines_.erase({*request.deadline, id});
  if (Client* client = find(request.peer)) client->requests.erase(request.request_id);
  return request;
}

std::vector<RequestId> Clients::all_requests() const {
  std::vector<RequestId> ids;
  for (const auto& [id, request] : in_flight_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::vector<RequestId> Clients::take_overdue(Clock::time_point now) {
  std::vector<RequestId> ids;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    ids.push_back(deadlines_.begin()->second);
    deadlines_.erase(deadlines_.begin());
  }
  return ids;
}

std::optional<Clock::time_point> Clients::next_deadline() const {
  if (deadlines_.empty()) return std::nullopt;
  return deadlines_.begin()->first;
}

std::vector<RequestId> Clients::forget(const std::string& peer) {
  std::vector<RequestId> ids;
  const auto found = clients_.find(peer);
  if (found == clients_.end()) return ids;
  for (const auto& [request_id, id] : found->second.requests) ids.push_back(id);
  for (const RequestId id : ids) {
    const auto request = in_flight_.find(id);
    if (request->second.deadline) deadlines_.erase({*request->second.deadline, id});
    in_flight_.erase(request);
  }
  clients_.erase(found);
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace exact::worker
