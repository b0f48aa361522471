#include "worker/server.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "worker/convert.h"
#include "worker/server_impl.h"

namespace exact::worker {
namespace {

constexpr std::chrono::milliseconds kIdleWait{100};  // until the flags are looked at again
constexpr int32_t kSilentHeartbeats = 3;
// A flood of messages may hide a client's heartbeat behind it: wait longer for it.
constexpr int32_t kSilentHeartbeatsInFlood = 30;

Status check_limits(const ServerLimits& limits) {
  const auto require = [](const char* name, int64_t value, int64_t low, int64_t high) -> Status {
    if (value >= low && value <= high) return {};
    return Status(Code::invalid, std::string(name) + " is " + std::to_string(value) +
                                     "; it must be from " + std::to_string(low) + " to " +
                                     std::to_string(high));
  };
  constexpr int64_t kDay = 86'400'000;
  EXACT_RETURN_IF_ERROR(require("max_clients", limits.max_clients, 1, 65'536));
  EXACT_RETURN_IF_ERROR(require("max_requests", limits.max_requests, 1, 1 << 20));
  EXACT_RETURN_IF_ERROR(require("max_message_bytes", static_cast<int64_t>(limits.max_message_bytes),
                                4096, int64_t{1} << 31));
  EXACT_RETURN_IF_ERROR(require("max_queued_messages", limits.max_queued_messages, 1, 1 << 20));
  EXACT_RETURN_IF_ERROR(require("max_bucket_bytes", static_cast<int64_t>(limits.max_bucket_bytes),
                                4096, int64_t{1} << 36));
  EXACT_RETURN_IF_ERROR(require("heartbeat_ms", limits.heartbeat_ms, 10, kDay));
  EXACT_RETURN_IF_ERROR(require("update_timeout_ms", limits.update_timeout_ms, 10, kDay));
  return require("messages_per_step", limits.messages_per_step, 1, 1 << 20);
}

}  // namespace

Server::Impl::Impl(Engine& engine, const ServerOptions& options,
                   std::unique_ptr<ipc::ServerSocket> socket)
    : engine_(engine),
      options_(options),
      socket_(std::move(socket)),
      clients_(options.limits.max_clients, options.limits.max_requests),
      session_(engine, {options.limits.max_bucket_bytes,
                        std::chrono::milliseconds(options.limits.update_timeout_ms)}),
      contract_id_(engine.contract().to_hex()) {}

Status Server::Impl::run() {
  while (!stop_) {
    if (drain_ && !draining_) {
      draining_ = true;
      log(LogLevel::info, "draining in_flight=" + std::to_string(clients_.in_flight()));
    }
    EXACT_ASSIGN(const bool all_read, receive_messages());
    forget_lost(Clock::now(), all_read);
    if (engine_.has_work()) EXACT_RETURN_IF_ERROR(step_engine());
    if (draining_ && is_done()) {
      log(LogLevel::info, "drained");
      return {};
    }
  }
  log(LogLevel::info, "stopped in_flight=" + std::to_string(clients_.in_flight()));
  return {};
}

bool Server::Impl::is_done() const {
  return !engine_.has_work() && clients_.in_flight() == 0 &&
         session_.state() == WeightSession::State::idle;
}

Result<bool> Server::Impl::receive_messages() {
  const bool busy = engine_.has_work() || (draining_ && is_done());
  std::chrono::milliseconds timeout = busy ? std::chrono::milliseconds(0) : kIdleWait;
  for (int32_t i = 0; i < options_.limits.messages_per_step; i++) {
    EXACT_ASSIGN(const std::optional<ipc::Incoming> incoming, socket_->receive(timeout));
    if (!incoming) return true;
    handle(*incoming, Clock::now());
    timeout = std::chrono::milliseconds(0);
  }
  return false;
}

// Runs after the queue was read, so a step that took long is nobody's silence but the worker's.
void Server::Impl::forget_lost(Clock::time_point now, bool all_read) {
  const int32_t patience = all_read ? kSilentHeartbeats : kSilentHeartbeatsInFlood;
  const std::chrono::milliseconds allowed(int64_t{options_.limits.heartbeat_ms} * patience);
  for (const std::string& peer : clients_.silent_since(now - allowed)) {
    drop_client(peer, "silent for " + std::to_string(allowed.count()) + " ms");
  }
  if (!all_read) return;
  if (const std::optional<Status> expired = session_.expire(now)) {
    log(LogLevel::warning, "update_expired error=\"" + expired->message() + "\"");
  }
}

Status Server::Impl::step_engine() {
  Result<StepReport> report = engine_.step();
  if (!report) {
    log(LogLevel::error, "step_failed error=\"" + report.status().message() + "\"");
    fail_all(report.status());
    return report.status();
  }
  if (report->committed) deliver_commit();
  for (SampleResult& sample : report->samples) deliver(std::move(sample));
  for (ScoreResult& score : report->scores) deliver(std::move(score));
  return {};
}

void Server::Impl::deliver(SampleResult result) {
  InFlight* request = clients_.find_request(result.request);
  if (request == nullptr) return;  // its client was dropped
  const RequestId id = result.request;
  request->reply.completions.push_back(to_completion(std::move(result)));
  if (--request->samples_left > 0) return;
  InFlight done = clients_.take(id);
  std::sort(done.reply.completions.begin(), done.reply.completions.end(),
            [](const ipc::Completion& a, const ipc::Completion& b) {
              return a.sample_index < b.sample_index;
            });
  answer(done.peer, done.request_id, done.reply);
}

void Server::Impl::deliver(ScoreResult result) {
  if (clients_.find_request(result.request) == nullptr) return;  // its client was dropped
  const InFlight done = clients_.take(result.request);
  if (!result.error.is_ok()) return refuse(done.peer, done.request_id, result.error);
  answer(done.peer, done.request_id, to_reply(std::move(result), engine_.contract()));
}

void Server::Impl::deliver_commit() {
  const EngineStatus status = engine_.status();
  const WeightSession::Commit commit = session_.take_commit();
  const ipc::UpdateCommitted committed{status.version.value, status.weights_digest.to_hex()};
  log(LogLevel::info, "update_live version=" + std::to_string(committed.weight_version) +
                          " weights_digest=" + committed.weights_digest);
  if (!commit.peer.empty()) answer(commit.peer, commit.request_id, committed);
}

// The engine can't go on: everybody who waits is told.
void Server::Impl::fail_all(const Status& reason) {
  for (const RequestId id : clients_.all_requests()) {
    if (clients_.find_request(id) == nullptr) continue;  // went with its client just now
    const InFlight request = clients_.take(id);
    refuse(request.peer, request.request_id, reason);
  }
  if (session_.state() == WeightSession::State::committing) {
    const WeightSession::Commit commit = session_.take_commit();
    if (!commit.peer.empty()) refuse(commit.peer, commit.request_id, reason);
  }
}

void Server::Impl::refuse(const std::string& peer, uint64_t request_id, const Status& reason) {
  log(LogLevel::debug, "refused request_id=" + std::to_string(request_id) +
                           " code=" + std::string(code_name(reason.code())) + " error=\"" +
                           reason.message() + "\"");
  send(peer, ipc::encode(ipc::ErrorReply{static_cast<uint8_t>(reason.code()), reason.message()},
                         request_id));
}

void Server::Impl::send(const std::string& peer, const ipc::Frames& frames) {
  const Status sent = socket_->send(peer, frames);
  if (!sent.is_ok()) drop_client(peer, sent.message());
}

void Server::Impl::drop_client(const std::string& peer, std::string_view why) {
  const Client* client = clients_.find(peer);
  if (client == nullptr) return;
  const std::string name = client->name;
  const std::vector<RequestId> requests = clients_.forget(peer);
  for (const RequestId id : requests) {
    // Its last sample may have ended in this very step: then there is nothing left to cancel.
    (void)engine_.cancel(id);
  }
  const bool had_update = session_.drop(peer);
  log(LogLevel::warning,
      "client_dropped client=" + name + " requests=" + std::to_string(requests.size()) +
          (had_update ? " update=dropped" : "") + " why=\"" + std::string(why) + "\"");
}

void Server::Impl::log(LogLevel level, const std::string& line) const {
  if (options_.log) options_.log(level, line);
}

// ---- the public face
Result<std::unique_ptr<Server>> Server::create(Engine& engine, const ServerOptions& options) {
  EXACT_RETURN_IF_ERROR(check_limits(options.limits));
  EXACT_ASSIGN(auto socket,
               ipc::ServerSocket::bind({options.endpoint, options.limits.max_message_bytes,
                                        options.limits.max_queued_messages}));
  return std::unique_ptr<Server>(
      new Server(std::make_unique<Impl>(engine, options, std::move(socket))));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;
Status Server::run() {
  return impl_->run();
}
void Server::drain() {
  impl_->drain();
}
void Server::stop() {
  impl_->stop();
}
const std::string& Server::endpoint() const {
  return impl_->endpoint();
}

}  // namespace exact::worker
