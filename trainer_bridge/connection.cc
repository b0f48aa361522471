#include "trainer_bridge/connection.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace exact::bridge {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t kMaxOpenHeartbeats = 16;
constexpr int32_t kQueuedMessages = 4096;  // more than any worker's max_requests by default
constexpr milliseconds kMinHeartbeat{20};
constexpr milliseconds kMaxHeartbeat{3'600'000};

// A wait of at least one millisecond for a deadline that has not passed: never a busy loop.
milliseconds until(Deadline deadline) {
  const auto left = deadline - steady_clock::now();
  if (left <= steady_clock::duration::zero()) return milliseconds(0);
  return std::chrono::ceil<milliseconds>(left);
}

std::string in_ms(steady_clock::duration duration) {
  return std::to_string(std::chrono::duration_cast<milliseconds>(duration).count()) + " ms";
}

}  // namespace

Connection::Connection(const ClientOptions& options, std::unique_ptr<ipc::ClientSocket> socket)
    : options_(options), socket_(std::move(socket)) {}

Result<std::unique_ptr<Connection>> Connection::open(const ClientOptions& options) {
  if (std::min(options.timeout, options.connect_timeout) <= milliseconds(0)) {
    return Status(Code::invalid, "timeout and connect_timeout must be above 0 ms");
  }
  ipc::ClientSocketOptions socket_options;
  socket_options.endpoint = options.endpoint;
  socket_options.max_message_bytes = options.max_message_bytes;
  socket_options.queue_messages = kQueuedMessages;
  EXACT_ASSIGN(auto socket, ipc::ClientSocket::connect(socket_options));
  std::unique_ptr<Connection> connection(new Connection(options, std::move(socket)));
  const auto patience = std::min(options.timeout, options.connect_timeout);
  EXACT_RETURN_IF_ERROR(connection->greet(steady_clock::now() + patience));
  return connection;
}

Status Connection::greet(Deadline deadline) {
  const auto begin = steady_clock::now();
  ipc::Hello hello;
  hello.client = options_.name;
  hello.contract_id = options_.contract_id;
  auto id = post_greeted(hello, Purpose::call, "client", deadline);
  if (!id) return id.status();
  auto reply = take<ipc::HelloReply>(*id, deadline);
  if (!reply) {
    if (reply.status().code() != Code::timeout) return reply.status();
    return Status(Code::timeout, "no worker answered at " + options_.endpoint + " within " +
                                     in_ms(steady_clock::now() - begin) +
                                     ": is `rollout serve` running and bound to this endpoint?");
  }
  if (!options_.contract_id.empty() && reply->contract_id != options_.contract_id) {
    return Status(Code::contract_mismatch, "the worker's contract id is " + reply->contract_id +
                                               ", this client demands " + options_.contract_id +
                                               ": serve a model of the same config and release");
  }
  worker_ = std::move(*reply);
  next_heartbeat_ = last_sent_ + heartbeat_interval();
  greeted_ = true;
  return {};
}

milliseconds Connection::heartbeat_interval() const {
  return std::clamp(milliseconds(worker_.heartbeat_ms), kMinHeartbeat, kMaxHeartbeat) / 2;
}

// A client that was silent for long may have been taken for dead, and a worker may have been
// started anew. One heartbeat tells, before work is sent to a worker that would refuse it.
Status Connection::keep_session(Deadline deadline) {
  if (greeted_ && steady_clock::now() - last_sent_ >= 4 * heartbeat_interval()) {
    auto id = post_greeted(ipc::Ping{}, Purpose::call, "", deadline);
    if (!id) return id.status();
    const auto pong = take<ipc::Pong>(*id, deadline);
    if (!pong && pong.status().code() == Code::timeout) return pong.status();
    if (!pong) lose_session(pong.status().message());
  }
  return greeted_ ? Status() : greet(deadline);
}

void Connection::lose_session(const std::string& why) {
  greeted_ = false;
  suspects_loss_ = false;
  silent_since_.reset();
  std::vector<uint64_t> open;
  for (const auto& [id, waiting] : waiting_) {
    if (!waiting.answer) open.push_back(id);
  }
  std::sort(open.begin(), open.end());
  for (const uint64_t id : open) {
    Status error(Code::peer_lost,
                 "the worker no longer knows this client (it was started anew, or heard nothing "
                 "for three heartbeats of " +
                     std::to_string(worker_.heartbeat_ms) + " ms): send the request again; " + why);
    deliver(id, Answer{std::move(error), {}, {}});
  }
}

Status Connection::send(ipc::MessageType type, const ipc::Frames& frames,
                        std::string_view widest_field, Deadline deadline) {
  const uint64_t bytes = frames.header.size() + frames.body.size();
  if (greeted_ && bytes > worker_.max_message_bytes) {
    return Status(Code::invalid, std::string(ipc::message_type_name(type)) + ": field '" +
                                     std::string(widest_field) + "' makes a message of " +
                                     std::to_string(bytes) + " bytes; the worker takes at most " +
                                     std::to_string(worker_.max_message_bytes));
  }
  EXACT_RETURN_IF_ERROR(socket_->send(frames, until(deadline)));
  last_sent_ = steady_clock::now();
  next_heartbeat_ = last_sent_ + heartbeat_interval();
  return {};
}

void Connection::forget(Purpose purpose) {
  std::erase_if(waiting_, [&](const auto& entry) { return entry.second.purpose == purpose; });
}

void Connection::forget(uint64_t request_id) {
  waiting_.erase(request_id);
}

Status Connection::no_answer(uint64_t request_id) const {
  return Status(Code::timeout, "the worker at " + options_.endpoint + " did not answer request " +
                                   std::to_string(request_id) + " in time: allow more than " +
                                   in_ms(options_.timeout) + ", or ask for its status");
}

Result<Connection::Answer> Connection::wait_for(uint64_t request_id, Deadline deadline) {
  const auto found = waiting_.find(request_id);
  if (found == waiting_.end()) {
    return Status(Code::not_found, "no request " + std::to_string(request_id) +
                                       " is in flight, or its answer was taken already");
  }
  Waiting& waiting = found->second;  // stays where it is while others come and go
  while (!waiting.answer) {
    auto in_time = pump(deadline);
    if (!in_time || !*in_time) {
      forget(request_id);
      if (!in_time) return in_time.status();
      return no_answer(request_id);
    }
  }
  Answer answer = std::move(*waiting.answer);
  forget(request_id);
  return answer;
}

Result<bool> Connection::pump(Deadline deadline) {
  Deadline wake = deadline;
  if (greeted_) wake = std::min(wake, next_heartbeat_);
  EXACT_ASSIGN(auto frames, socket_->receive(until(wake)));
  if (frames) {
    silent_since_.reset();
    EXACT_RETURN_IF_ERROR(receive_one(std::move(*frames)));
    return true;
  }
  EXACT_RETURN_IF_ERROR(heartbeat());
  return steady_clock::now() < deadline;
}

// Says that this client is alive, and finds out whether the worker is.
Status Connection::heartbeat() {
  const auto now = steady_clock::now();
  if (!greeted_ || now < next_heartbeat_) return {};
  const auto patience =
      std::max<steady_clock::duration>(6 * heartbeat_interval(), options_.timeout);
  if (silent_since_ && now - *silent_since_ > patience) {
    return Status(Code::peer_lost, "the worker at " + options_.endpoint + " has been silent for " +
                                       in_ms(now - *silent_since_) +
                                       ": look at its log, start it anew, then connect again");
  }
  if (!silent_since_) silent_since_ = now;
  next_heartbeat_ = now + heartbeat_interval();
  if (heartbeats_open_ >= kMaxOpenHeartbeats) return {};
  const auto id = post_greeted(ipc::Ping{}, Purpose::heartbeat, "", now);
  if (id) heartbeats_open_++;
  // A full queue is one more sign of a silent worker; its time is running already.
  return id || id.status().code() == Code::timeout ? Status() : id.status();
}

Status Connection::receive_one(ipc::Frames frames) {
  EXACT_ASSIGN(const ipc::Header header,
               ipc::decode_header(std::as_bytes(std::span(frames.header))));
  Answer answer{Status(), header, std::move(frames.body)};
  if (header.type == ipc::MessageType::error_reply) {
    EXACT_ASSIGN(const auto error,
                 ipc::decode_body<ipc::ErrorReply>(header, std::as_bytes(std::span(answer.body))));
    const bool known = error.code > 0 && error.code <= static_cast<uint8_t>(Code::device);
    answer.error = Status(known ? static_cast<Code>(error.code) : Code::corrupt, error.message);
    suspects_loss_ |= answer.error.code() == Code::invalid;
    // The worker could not read a message well enough to tell which: nobody else will hear of it.
    if (header.request_id == 0) return answer.error;
  }
  deliver(header.request_id, std::move(answer));
  return {};
}

void Connection::deliver(uint64_t request_id, Answer answer) {
  const auto found = waiting_.find(request_id);
  if (found == waiting_.end() || found->second.answer) {
    dropped_answers_++;
    return;
  }
  switch (found->second.purpose) {
    case Purpose::heartbeat: {
      waiting_.erase(found);
      heartbeats_open_--;
      if (!answer.error && greeted_) lose_session(answer.error.message());
      return;
    }
    case Purpose::rollout:
    case Purpose::mask: {
      const Purpose purpose = found->second.purpose;
      if (!sink_ || sink_(purpose, request_id, answer)) waiting_.erase(request_id);
      return;
    }
    case Purpose::call:
    case Purpose::bucket:
      break;
  }
  found->second.answer = std::move(answer);
}

}  // namespace exact::bridge
