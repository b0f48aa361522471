// server_impl.h owns the inside of the server: its state, all touched by the loop's thread alone,
// and two flags that anybody may set. server.cc has the loop, server_dispatch.cc the messages,
// server_delivery.cc what goes out.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "ipc/codec.h"
#include "ipc/socket.h"
#include "worker/clients.h"
#include "worker/recorder.h"
#include "worker/server.h"
#include "worker/weight_session.h"

namespace exact::worker {

class Server::Impl {
 public:
  Impl(Engine& engine, const ServerOptions& options, std::unique_ptr<ipc::ServerSocket> socket);

  Status run();
  void drain() { drain_ = true; }
  void stop() { stop_ = true; }
  const std::string& endpoint() const { return socket_->endpoint(); }

 private:
  // What a handler knows of the message in hand.
  struct Context {
    const std::string& peer;
    uint64_t request_id = 0;
    Clock::time_point now;
  };

  // ---- the loop (server.cc)
  // True when nothing is left to read.
  Result<bool> receive_messages();
  std::chrono::milliseconds patience(Clock::time_point now) const;
  void forget_lost(Clock::time_point now, bool all_read);
  void end_overdue(Clock::time_point now);
  Status step_engine();
  // Lets the store read on, and says what has become of a version.
  void keep_weights();
  bool is_done() const;

  // ---- what a step made (server_delivery.cc)
  void deliver(SampleProgress progress);
  void deliver(const MaskWanted& wanted);
  void deliver(SampleResult result);
  void deliver(ScoreResult result);
  void deliver_buckets(Clock::time_point now);
  void deliver_commit();
  void fail_all(const Status& reason);

  // ---- the journal (server_journal.cc)
  // Sends `frames` once everything recorded so far is as durable as the operator wants it.
  void send_recorded(const std::string& peer, ipc::Frames frames);
  template <class Message>
  void answer_recorded(const std::string& peer, uint64_t request_id, const Message& message);
  void refuse_recorded(const std::string& peer, uint64_t request_id, const Status& reason);
  // Sends what waited and may go; tells of a failure and of records that are missing.
  void look_after_journal(Clock::time_point now);
  void end_recording(const Status& failure);

  // ---- answers (server_delivery.cc). Whoever can't be answered is dropped.
  template <class Message>
  void answer(const std::string& peer, uint64_t request_id, const Message& message);
  Status check_size(const ipc::Frames& frames) const;
  void refuse(const std::string& peer, uint64_t request_id, const Status& reason);
  void send(const std::string& peer, ipc::Frames frames);
  // Tries again to send what waits; drops who has taken nothing since `time`.
  void flush_unsent(Clock::time_point now);
  void drop_stalled(Clock::time_point time);
  void drop_client(const std::string& peer, std::string_view why);
  void log(LogLevel level, const std::string& line) const;

  // ---- messages (server_dispatch.cc)
  void handle(const ipc::Incoming& incoming, Clock::time_point now);
  Status check_sender(const ipc::Header& header, const Context& context);
  void dispatch(const ipc::Header& header, const std::string& body, const Context& context);
  template <class Message>
  void decode_and_handle(const ipc::Header& header, const std::string& body,
                         const Context& context);
  Status handle_message(ipc::Hello message, const Context& context);
  Status handle_message(ipc::Ping message, const Context& context);
  Status handle_message(ipc::Generate message, const Context& context);
  Status handle_message(ipc::Score message, const Context& context);
  Status handle_message(ipc::Cancel message, const Context& context);
  Status handle_message(ipc::Allow message, const Context& context);
  Status handle_message(ipc::StatusQuery message, const Context& context);
  Status handle_message(ipc::UpdateBegin message, const Context& context);
  Status handle_message(ipc::UpdateBucket message, const Context& context);
  Status handle_message(ipc::UpdateCommit message, const Context& context);
  Status handle_message(ipc::UpdateAbort message, const Context& context);
  Status handle_message(ipc::Sleep message, const Context& context);
  Status handle_message(ipc::Wake message, const Context& context);
  Status check_accepting(const Context& context);
  // invalid: the longest answer or part could exceed one message.
  Status check_reply_size(const GenerateRequest& request, ipc::ReplyMode mode) const;

  Engine& engine_;
  ServerOptions options_;
  std::unique_ptr<ipc::ServerSocket> socket_;
  Clients clients_;
  WeightSession session_;
  Recorder recorder_;
  uint64_t missing_told_ = 0;  // of recorder_.missing()
  Clock::time_point missing_told_at_;
  std::string contract_id_;
  uint64_t next_request_ = 1;
  std::atomic<bool> drain_{false};
  std::atomic<bool> stop_{false};
  bool draining_ = false;  // drain_, as the loop last saw it
};

template <class Message>
void Server::Impl::answer(const std::string& peer, uint64_t request_id, const Message& message) {
  ipc::Frames frames = ipc::encode(message, request_id);
  const Status fits = check_size(frames);
  if (!fits.is_ok()) return refuse(peer, request_id, fits);
  send(peer, std::move(frames));
}

template <class Message>
void Server::Impl::answer_recorded(const std::string& peer, uint64_t request_id,
                                   const Message& message) {
  ipc::Frames frames = ipc::encode(message, request_id);
  const Status fits = check_size(frames);
  if (!fits.is_ok()) return refuse_recorded(peer, request_id, fits);
  send_recorded(peer, std::move(frames));
}

}  // namespace exact::worker
