// connection.h owns one conversation with a worker: greeting, heartbeats, and which answer belongs
// to which request. It knows no request's meaning; client.h gives each its call. One thread.
//
// An answer nobody waits for is dropped and counted. Answers to rollouts are kept until taken, and
// there are never more of them than the worker's max_requests, because submit stops there.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "ipc/codec.h"
#include "ipc/messages.h"
#include "ipc/socket.h"
#include "kernels/base/result.h"
#include "trainer_bridge/client.h"

namespace exact::bridge {

using Deadline = std::chrono::steady_clock::time_point;

// Why a request was sent: rollouts are collected in the order they finish, the rest by id.
enum class Purpose : uint8_t { call, rollout, bucket, heartbeat };

class Connection {
 public:
  static Result<std::unique_ptr<Connection>> open(const ClientOptions& options);

  const ipc::HelloReply& worker() const { return worker_; }
  uint64_t dropped_answers() const { return dropped_answers_; }
  Deadline deadline() const { return std::chrono::steady_clock::now() + options_.timeout; }

  // Sends; `widest_field` is the one to blame when the message is larger than the worker takes.
  template <class Message>
  Result<uint64_t> post(const Message& message, Purpose purpose, std::string_view widest_field,
                        Deadline deadline) {
    EXACT_RETURN_IF_ERROR(keep_session(deadline));
    return post_greeted(message, purpose, widest_field, deadline);
  }
  // Waits for the answer to `request_id` and takes it. After a timeout its answer is dropped.
  template <class Answer>
  Result<Answer> take(uint64_t request_id, Deadline deadline);
  template <class Answer, class Message>
  Result<Answer> call(const Message& message, std::string_view widest_field) {
    const Deadline until = deadline();
    EXACT_ASSIGN(const uint64_t id, post(message, Purpose::call, widest_field, until));
    return take<Answer>(id, until);
  }

  // Rollouts whose answer has not been taken, whether it came or not.
  size_t rollouts() const;
  // The id of the rollout that finished first; nothing when none finished before the deadline.
  Result<std::optional<uint64_t>> wait_for_rollout(Deadline deadline);
  bool is_waiting_for(uint64_t request_id) const { return waiting_.contains(request_id); }
  // Answers that come to requests of this purpose from now on are dropped.
  void forget(Purpose purpose);
  void forget(uint64_t request_id);

 private:
  struct Answer {
    Status error;  // of the worker or the connection; else header and body
    ipc::Header header;
    std::string body;
  };
  struct Waiting {
    Purpose purpose = Purpose::call;
    std::optional<Answer> answer;
  };

  Connection(const ClientOptions& options, std::unique_ptr<ipc::ClientSocket> socket);

  template <class Message>
  Result<uint64_t> post_greeted(const Message& message, Purpose purpose,
                                std::string_view widest_field, Deadline deadline) {
    const uint64_t id = next_id_++;
    EXACT_RETURN_IF_ERROR(send(Message::kType, ipc::encode(message, id), widest_field, deadline));
    waiting_.emplace(id, Waiting{purpose, std::nullopt});
    return id;
  }

  Status greet(Deadline deadline);
  Status keep_session(Deadline deadline);
  void lose_session(const std::string& why);
  Status send(ipc::MessageType type, const ipc::Frames& frames, std::string_view widest_field,
              Deadline deadline);
  Result<Answer> wait_for(uint64_t request_id, Deadline deadline);
  Result<bool> pump(Deadline deadline);
  Status heartbeat();
  Status receive_one(ipc::Frames frames);
  void deliver(uint64_t request_id, Answer answer);
  std::chrono::milliseconds heartbeat_interval() const;

  ClientOptions options_;
  std::unique_ptr<ipc::ClientSocket> socket_;
  ipc::HelloReply worker_;
  bool greeted_ = false;
  bool suspects_loss_ = false;  // the worker called a request invalid: perhaps it knows us no more
  uint64_t next_id_ = 1;
  uint64_t dropped_answers_ = 0;
  std::unordered_map<uint64_t, Waiting> waiting_;
  std::deque<uint64_t> finished_rollouts_;
  Deadline last_sent_{};
  Deadline next_heartbeat_{};
  std::optional<Deadline> silent_since_;  // the oldest heartbeat after which nothing was heard
  size_t heartbeats_open_ = 0;
};

template <class Answer>
Result<Answer> Connection::take(uint64_t request_id, Deadline deadline) {
  EXACT_ASSIGN(const auto answer, wait_for(request_id, deadline));
  if (!answer.error) return answer.error;
  if (answer.header.type != Answer::kType) {
    return Status(Code::corrupt,
                  "the worker answered request " + std::to_string(request_id) + " with " +
                      std::string(ipc::message_type_name(answer.header.type)) + " where " +
                      std::string(ipc::message_type_name(Answer::kType)) +
                      " belongs: are both sides of the same release?");
  }
  return ipc::decode_body<Answer>(answer.header, std::as_bytes(std::span(answer.body)));
}

}  // namespace exact::bridge
