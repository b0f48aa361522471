// connection.h owns one conversation with a worker: greeting, heartbeats, and which answer belongs
// to which request. It knows no request's meaning; client.h gives each its call. One thread, but
// for wake().
//
// An answer nobody waits for is dropped and counted. What belongs to rollouts and masks goes to a
// sink as it comes, in the middle of whatever call reads the socket; the rest is kept for take().
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "ipc/codec.h"
#include "ipc/messages.h"
#include "ipc/socket.h"
#include "kernels/base/result.h"
#include "trainer_bridge/client.h"

namespace exact::bridge {

using Deadline = std::chrono::steady_clock::time_point;

// Why a request was sent: answers of rollouts and masks go to the sink, the rest is taken by id.
enum class Purpose : uint8_t { call, rollout, mask, bucket, heartbeat };

class Connection {
 public:
  struct Answer {
    Status error;  // of the worker or the connection; else header and body
    ipc::Header header;
    std::string body;
  };
  // Takes what came for a rollout or a mask. True: nothing more can come for it.
  using Sink = std::function<bool(Purpose, uint64_t request_id, const Answer&)>;

  static Result<std::unique_ptr<Connection>> open(const ClientOptions& options);

  const ipc::HelloReply& worker() const { return worker_; }
  uint64_t dropped_answers() const { return dropped_answers_; }
  void set_sink(Sink sink) { sink_ = std::move(sink); }
  Deadline deadline() const { return std::chrono::steady_clock::now() + options_.timeout; }

  // Sends; `widest_field` is the one to blame when the message is larger than the worker takes.
  template <class Message>
  Result<uint64_t> post(const Message& message, Purpose purpose, std::string_view widest_field,
                        Deadline deadline) {
    EXACT_RETURN_IF_ERROR(keep_session(deadline));
    return post_greeted(message, purpose, widest_field, deadline);
  }
  // Waits for the answer to `request_id` and takes it. After a timeout its answer is dropped.
  template <class Message>
  Result<Message> take(uint64_t request_id, Deadline deadline);
  template <class Reply, class Message>
  Result<Reply> call(const Message& message, std::string_view widest_field) {
    const Deadline until = deadline();
    EXACT_ASSIGN(const uint64_t id, post(message, Purpose::call, widest_field, until));
    return take<Reply>(id, until);
  }

  // One message, or one heartbeat's wait. False once the deadline has passed and nothing came.
  Result<bool> pump(Deadline deadline);
  // Any thread: a pump() that waits, or else the next one, returns early, true before its deadline.
  void wake() { socket_->wake(); }
  // That `request_id` was not answered within a call's time.
  Status no_answer(uint64_t request_id) const;
  // Answers that come to requests of this purpose from now on are dropped.
  void forget(Purpose purpose);
  void forget(uint64_t request_id);

 private:
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
  Status heartbeat();
  Status receive_one(ipc::Frames frames);
  void deliver(uint64_t request_id, Answer answer);
  std::chrono::milliseconds heartbeat_interval() const;

  ClientOptions options_;
  std::unique_ptr<ipc::ClientSocket> socket_;
  Sink sink_;
  ipc::HelloReply worker_;
  bool greeted_ = false;
  bool suspects_loss_ = false;  // the worker called a request invalid: perhaps it knows us no more
  uint64_t next_id_ = 1;
  uint64_t dropped_answers_ = 0;
  std::unordered_map<uint64_t, Waiting> waiting_;
  Deadline last_sent_{};
  Deadline next_heartbeat_{};
  std::optional<Deadline> silent_since_;  // the oldest heartbeat after which nothing was heard
  size_t heartbeats_open_ = 0;
};

// The answer as what it should be, or the error it carries.
template <class Message>
Result<Message> read_answer(uint64_t request_id, const Connection::Answer& answer) {
  if (!answer.error) return answer.error;
  if (answer.header.type != Message::kType) {
    return Status(Code::corrupt,
                  "the worker answered request " + std::to_string(request_id) + " with " +
                      std::string(ipc::message_type_name(answer.header.type)) + " where " +
                      std::string(ipc::message_type_name(Message::kType)) +
                      " belongs: are both sides of the same release?");
  }
  return ipc::decode_body<Message>(answer.header, std::as_bytes(std::span(answer.body)));
}

template <class Message>
Result<Message> Connection::take(uint64_t request_id, Deadline deadline) {
  EXACT_ASSIGN(const auto answer, wait_for(request_id, deadline));
  return read_answer<Message>(request_id, answer);
}

}  // namespace exact::bridge
