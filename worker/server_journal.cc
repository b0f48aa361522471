// server_journal.cc owns what the journal means for the loop: which replies wait for it, and what
// becomes of requests when it can't record them.
#include <set>
#include <utility>

#include "worker/server_impl.h"

namespace exact::worker {
namespace {

constexpr std::chrono::seconds kTellMissingEvery{10};

}  // namespace

void Server::Impl::send_recorded(const std::string& peer, ipc::Frames frames) {
  if (!recorder_.hold(peer, frames)) send(peer, std::move(frames));
}

// An error of a request comes after its parts, so it waits where they do.
void Server::Impl::refuse_recorded(const std::string& peer, uint64_t request_id,
                                   const Status& reason) {
  send_recorded(peer,
                ipc::encode(ipc::ErrorReply{static_cast<uint8_t>(reason.code()), reason.message()},
                            request_id));
}

void Server::Impl::look_after_journal(Clock::time_point now) {
  while (auto held = recorder_.take_durable()) send(held->peer, std::move(held->frames));
  if (const std::optional<Status> failure = recorder_.new_failure()) end_recording(*failure);
  const uint64_t missing = recorder_.missing();
  if (missing > missing_told_ && now - missing_told_at_ >= kTellMissingEvery) {
    log(LogLevel::warning, "journal_records_missing since_start=" + std::to_string(missing) +
                               " new=" + std::to_string(missing - missing_told_));
    missing_told_ = missing;
    missing_told_at_ = now;
  }
}

// Under `block` nobody gets what is not recorded; under `drop` everybody does, with record id 0.
void Server::Impl::end_recording(const Status& failure) {
  log(LogLevel::error, std::string("journal_failed then=") +
                           (recorder_.blocks() ? "requests_refused" : "records_dropped") +
                           " error=\"" + failure.message() + "\"");
  const Status reason(
      failure.code(),
      "the worker's journal failed, and this request is not in it: " + failure.message());
  std::set<std::pair<std::string, uint64_t>> refused;
  for (Recorder::Held& held : recorder_.take_all()) {
    const auto header = ipc::decode_header(std::as_bytes(std::span(held.frames.header)));
    EXACT_CHECK(header.is_ok(), "a reply of this worker has no header");
    const bool is_update = header->type == ipc::MessageType::update_committed;  // it is live
    if (!recorder_.blocks() || is_update) {
      send(held.peer, without_record_ids(std::move(held.frames)));
    } else if (refused.emplace(held.peer, header->request_id).second) {
      refuse(held.peer, header->request_id, reason);
    }
  }
  if (!recorder_.blocks()) return;
  for (const RequestId id : clients_.all_requests()) {
    if (clients_.find_request(id) == nullptr) continue;  // went with its client just now
    const InFlight request = clients_.take(id);
    (void)engine_.cancel(id);  // not_found: its last sample has ended
    if (!refused.contains({request.peer, request.request_id})) {
      refuse(request.peer, request.request_id, reason);
    }
  }
}

}  // namespace exact::worker
