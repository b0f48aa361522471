#include "worker/server.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "worker/server_impl.h"

namespace exact::worker {
namespace {

constexpr std::chrono::milliseconds kIdleWait{100};  // until the flags are looked at again
constexpr std::chrono::milliseconds kUnsentWait{5};  // until what waits for a client is tried again
constexpr std::chrono::microseconds kMovingWait{50};  // until weights that move are looked at again
constexpr std::chrono::milliseconds kDiskWait{1};     // until a record is looked for on disk again
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
  EXACT_RETURN_IF_ERROR(require("max_unsent_bytes", static_cast<int64_t>(limits.max_unsent_bytes),
                                4096, int64_t{1} << 40));
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
      clients_(options.limits.max_clients, options.limits.max_requests,
               {static_cast<size_t>(options.limits.max_queued_messages),
                options.limits.max_unsent_bytes}),
      session_(engine,
               {options.limits.max_bucket_bytes,
                std::chrono::milliseconds(options.limits.update_timeout_ms)},
               WeightChannels(options.device_uuid)),
      recorder_(options.journal, options.journal_full),
      contract_id_(engine.contract().to_hex()) {}

Status Server::Impl::run() {
  while (!stop_) {
    if (drain_ && !draining_) {
      draining_ = true;
      log(LogLevel::info, "draining in_flight=" + std::to_string(clients_.in_flight()));
    }
    EXACT_ASSIGN(const bool all_read, receive_messages());
    look_after_journal(Clock::now());
    flush_unsent(Clock::now());
    forget_lost(Clock::now(), all_read);
    end_overdue(Clock::now());
    deliver_buckets(Clock::now());
    keep_weights();
    if (engine_.can_step()) {
      EXACT_RETURN_IF_ERROR(step_engine());
    } else if (session_.is_moving()) {
      std::this_thread::sleep_for(kMovingWait);  // nothing tells when a copy is done
    }
    if (draining_ && is_done()) {
      log(LogLevel::info, "drained");
      return {};
    }
  }
  if (options_.weights_keeper != nullptr && options_.weights_keeper->is_busy()) {
    log(LogLevel::warning,
        "weights_not_stored version=" + std::to_string(engine_.status().version.value) +
            " error=\"the worker was stopped\"");
  }
  log(LogLevel::info, "stopped in_flight=" + std::to_string(clients_.in_flight()));
  return {};
}

bool Server::Impl::is_done() const {
  if (options_.weights_keeper != nullptr && options_.weights_keeper->is_busy()) return false;
  return !engine_.has_work() && clients_.in_flight() == 0 &&
         session_.state() == UpdateState::idle && clients_.with_unsent().empty() &&
         !recorder_.holds();
}

// How long to wait for a message before the next step.
std::chrono::milliseconds Server::Impl::patience(Clock::time_point now) const {
  constexpr std::chrono::milliseconds kNone{0};
  if (engine_.can_step() || session_.is_moving() || (draining_ && is_done())) return kNone;
  auto wait = clients_.with_unsent().empty() ? kIdleWait : kUnsentWait;
  if (recorder_.holds()) wait = kDiskWait;
  if (const WeightsKeeper* keeper = options_.weights_keeper; keeper != nullptr) {
    if (keeper->wants_turn()) return kNone;
    if (keeper->is_busy()) wait = std::min(wait, kUnsentWait);
  }
  const std::optional<Clock::time_point> deadline = clients_.next_deadline();
  if (!deadline) return wait;
  return std::clamp(std::chrono::ceil<std::chrono::milliseconds>(*deadline - now), kNone, wait);
}

Result<bool> Server::Impl::receive_messages() {
  std::chrono::milliseconds timeout = patience(Clock::now());
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
  drop_stalled(now - allowed);
  if (!all_read) return;
  if (const std::optional<Status> expired = session_.expire(now)) {
    log(LogLevel::warning, "update_expired error=\"" + expired->message() + "\"");
  }
}

void Server::Impl::end_overdue(Clock::time_point now) {
  for (const RequestId id : clients_.take_overdue(now)) {
    // Its last sample may have ended in the last step: then its answer is on its way.
    (void)engine_.cancel(id, FinishReason::deadline);
  }
}

void Server::Impl::keep_weights() {
  WeightsKeeper* keeper = options_.weights_keeper;
  if (keeper == nullptr) return;
  keeper->turn();
  const auto outcome = keeper->take_outcome();
  if (!outcome) return;
  const std::string version = " version=" + std::to_string(outcome->version) +
                              " weights_digest=" + outcome->weights_digest.to_hex();
  if (outcome->status.is_ok()) {
    log(LogLevel::info,
        "weights_stored" + version + " written_bytes=" + std::to_string(outcome->bytes_written));
  } else {
    log(LogLevel::error,
        "weights_not_stored" + version + " error=\"" + outcome->status.message() + "\"");
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
  for (SampleProgress& progress : report->progress) deliver(std::move(progress));
  for (const MaskWanted& wanted : report->masks_wanted) deliver(wanted);
  for (SampleResult& sample : report->samples) deliver(std::move(sample));
  for (ScoreResult& score : report->scores) deliver(std::move(score));
  return {};
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
