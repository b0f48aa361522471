#include "worker/recorder.h"

#include <algorithm>
#include <utility>

namespace exact::worker {
namespace {

constexpr size_t kMaxMaskIds = size_t{4} << 20;  // of one sample, 16 MiB

template <class Message>
Result<Message> decode(const ipc::Header& header, const ipc::Frames& frames) {
  return ipc::decode_body<Message>(header, std::as_bytes(std::span(frames.body)));
}

}  // namespace

Status Recorder::check_room() const {
  if (journal_ == nullptr || when_full_ == JournalFull::drop) return {};
  if (const Status failure = journal_->failure(); !failure.is_ok()) {
    return Status(failure.code(),
                  "the worker takes no new work, because its journal failed: " + failure.message());
  }
  if (journal_->has_room()) return {};
  return Status(Code::exhausted,
                "the journal's queue is full, its disk is too slow: try again in a while");
}

void Recorder::accepted(RequestId id, const std::string& client, const ipc::Generate& request) {
  if (journal_ == nullptr) return;
  kept_.emplace(id, Kept{client, request, request.n, {}});
}

void Recorder::accepted(RequestId id, const std::string& client, const ipc::Score& request) {
  if (journal_ == nullptr) return;
  scores_.emplace(id, KeptScore{client, request.tokens});
}

void Recorder::allowed(RequestId id, int32_t sample_index, std::span<const int32_t> ids) {
  const auto found = kept_.find(id);
  if (found == kept_.end()) return;
  SampleMasks& masks = found->second.masks[sample_index];
  if (masks.is_whole && masks.ids.size() + ids.size() > kMaxMaskIds) {
    masks = {{}, {}, false};
  }
  if (!masks.is_whole) return;
  masks.counts.push_back(static_cast<int32_t>(ids.size()));
  masks.ids.insert(masks.ids.end(), ids.begin(), ids.end());
}

template <class Record>
uint64_t Recorder::append(const Record& record, bool always) {
  const auto id = always ? journal_->append_always(record) : journal_->append(record);
  if (id) return *id;
  ++missing_;
  return 0;
}

uint64_t Recorder::completed(RequestId id, const ipc::Completion& completion) {
  const auto found = kept_.find(id);
  if (found == kept_.end()) return 0;
  Kept& kept = found->second;
  journal::CompletionRecord record;
  record.client = kept.client;
  record.completion = completion;
  if (const auto masks = kept.masks.find(completion.sample_index); masks != kept.masks.end()) {
    record.mask_counts = std::move(masks->second.counts);
    record.mask_ids = std::move(masks->second.ids);
    if (!masks->second.is_whole) {
      record.not_replayable =
          "its masks have more than " + std::to_string(kMaxMaskIds) + " ids, and were not kept";
    }
  }
  // Lent for the encoding: the samples of a group share it.
  std::swap(record.request, kept.request);
  const uint64_t record_id = append(record, blocks());
  std::swap(record.request, kept.request);
  if (--kept.samples_left == 0) kept_.erase(found);
  return record_id;
}

void Recorder::scored(const ScoreResult& result) {
  const auto found = scores_.find(result.request);
  if (found == scores_.end()) return;
  const KeptScore kept = std::move(found->second);
  scores_.erase(found);
  if (!result.error.is_ok()) return;  // nothing was made
  journal::ScoreRecord record;
  record.client = kept.client;
  record.tokens = kept.tokens;
  record.logprobs = result.logprobs;
  record.weight_version = result.version.value;
  record.weights_digest = result.weights_digest.to_hex();
  (void)append(record, blocks());
}

void Recorder::update_begun(const ipc::UpdateBegin& message) {
  if (journal_ == nullptr) return;
  update_ = {};
  update_.base_version = message.base_version;
  update_.policy = message.policy;
  update_.transport = message.transport;
  update_.in_place = message.in_place;
  update_.path = message.path;
}

void Recorder::updated(const EngineStatus& live) {
  if (journal_ == nullptr) return;
  journal::UpdateRecord record;
  record.weight_version = live.version.value;
  record.weights_digest = live.weights_digest.to_hex();
  record.base_version = update_.base_version;
  record.policy = update_.policy;
  record.transport = update_.transport;
  record.in_place = update_.in_place;
  record.weights_at = update_.path;
  (void)append(record, true);  // small, and without it no later record can be placed
}

bool Recorder::hold(const std::string& peer, ipc::Frames& frames) {
  if (journal_ == nullptr || journal_->options().fsync != journal::Fsync::each) return false;
  const uint64_t last = journal_->last_id();
  if (held_.empty() && (failure_told_ || last <= journal_->durable_up_to())) return false;
  held_.push_back({peer, last, std::move(frames)});
  return true;
}

std::optional<Recorder::Held> Recorder::take_durable() {
  if (held_.empty() || held_.front().record_id > journal_->durable_up_to()) return std::nullopt;
  Held held = std::move(held_.front());
  held_.pop_front();
  return held;
}

void Recorder::forget(const std::string& peer) {
  std::erase_if(held_, [&](const Held& held) { return held.peer == peer; });
}

std::optional<Status> Recorder::new_failure() {
  if (journal_ == nullptr || failure_told_) return std::nullopt;
  const Status failure = journal_->failure();
  if (failure.is_ok()) return std::nullopt;
  failure_told_ = true;
  missing_ += journal_->last_id() - journal_->durable_up_to();
  return failure;
}

ipc::Frames without_record_ids(ipc::Frames frames) {
  const auto header = ipc::decode_header(std::as_bytes(std::span(frames.header)));
  EXACT_CHECK(header.is_ok(), "a reply of this worker has no header");
  if (header->type == ipc::MessageType::generate_reply) {
    auto reply = decode<ipc::GenerateReply>(*header, frames);
    EXACT_CHECK(reply.is_ok(), "a reply of this worker can't be read");
    for (ipc::Completion& completion : reply->completions) completion.record_id = 0;
    return ipc::encode(*reply, header->request_id);
  }
  if (header->type == ipc::MessageType::sample_done) {
    auto done = decode<ipc::SampleDone>(*header, frames);
    EXACT_CHECK(done.is_ok(), "a part of this worker can't be read");
    done->completion.record_id = 0;
    return ipc::encode(*done, header->request_id);
  }
  return frames;
}

}  // namespace exact::worker
