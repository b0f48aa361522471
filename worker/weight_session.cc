#include "worker/weight_session.h"

#include <algorithm>
#include <random>
#include <utility>

namespace exact::worker {
namespace {

uint64_t random_session() {
  std::random_device device;
  uint64_t session = 0;
  while (session == 0) session = uint64_t{device()} << 32 | device();
  return session;
}

std::vector<uint64_t> sizes_of(const std::vector<ExpectedTensor>& tensors) {
  std::vector<uint64_t> sizes;
  sizes.reserve(tensors.size());
  for (const ExpectedTensor& tensor : tensors) sizes.push_back(tensor.bytes);
  return sizes;
}

}  // namespace

std::string_view WeightSession::state_name() const {
  switch (state_) {
    case State::idle:
      return "idle";
    case State::receiving:
      return "receiving";
    case State::committing:
      return "committing";
  }
  return "unknown";
}

Status WeightSession::check_begin(const ipc::UpdateBegin& message) const {
  const std::string ours = engine_.contract().to_hex();
  if (message.contract_id != ours) {
    return Status(Code::contract_mismatch,
                  "contract_id is '" + message.contract_id.substr(0, 32) + "', the worker's is '" +
                      ours + "': publish from a trainer with the same rules and model config");
  }
  const WeightVersion live = engine_.status().version;
  if (message.weight_version <= live.value) {
    return Status(Code::invalid, "weight_version " + std::to_string(message.weight_version) +
                                     " is not above the live version " +
                                     std::to_string(live.value));
  }
  if (message.policy > static_cast<uint8_t>(UpdatePolicy::abort)) {
    return Status(Code::invalid, "policy is " + std::to_string(message.policy) +
                                     "; it must be wait (0), recompute (1) or abort (2)");
  }
  if (message.bucket_bytes == 0) {
    return Status(Code::invalid, "bucket_bytes is 0: give each bucket at least one byte");
  }
  return {};
}

Result<ipc::UpdateReady> WeightSession::begin(const std::string& peer,
                                              const ipc::UpdateBegin& message,
                                              Clock::time_point now) {
  if (state_ != State::idle) {
    return Status(Code::exhausted, std::string("an update by ") +
                                       (peer == peer_ ? "this" : "another") +
                                       " client is under way: try again when it has ended");
  }
  EXACT_RETURN_IF_ERROR(check_begin(message));
  EXACT_ASSIGN(tensors_, match_manifest(message.tensors, tensor_table(engine_.config())));
  EXACT_ASSIGN(const ipc::BucketPlan whole, ipc::BucketPlan::create(sizes_of(tensors_), 1));
  const uint64_t bucket_bytes =
      std::min({message.bucket_bytes, limits_.max_bucket_bytes, whole.stream_bytes});
  plan_ = ipc::BucketPlan{whole.stream_bytes, bucket_bytes};

  session_ = random_session();
  EXACT_ASSIGN(segment_, ipc::WeightSegment::create(session_, bucket_bytes));
  Result<WeightSlot*> slot = engine_.begin_update();
  if (!slot) {
    segment_.reset();
    return slot.status();
  }
  slot_ = *slot;
  state_ = State::receiving;
  peer_ = peer;
  version_ = WeightVersion{message.weight_version};
  policy_ = static_cast<UpdatePolicy>(message.policy);
  next_bucket_ = 0;
  deadline_ = now + limits_.timeout;

  ipc::UpdateReady ready;
  ready.session = session_;
  ready.segment_name = segment_->name();
  ready.segment_bytes = segment_->bytes();
  ready.bucket_bytes = bucket_bytes;
  ready.timeout_ms = static_cast<int32_t>(limits_.timeout.count());
  return ready;
}

Status WeightSession::check_owner(const std::string& peer, uint64_t session) const {
  if (state_ == State::idle || peer != peer_ || session != session_) {
    return Status(Code::invalid, "session " + std::to_string(session) +
                                     " is not an open update of this client: begin a new one");
  }
  if (state_ == State::committing) {
    return Status(Code::invalid,
                  "the update is committed and can't be changed: it is live once running requests "
                  "allow it");
  }
  return {};
}

Result<ipc::UpdateBucketDone> WeightSession::bucket(const std::string& peer,
                                                    const ipc::UpdateBucket& message,
                                                    Clock::time_point now) {
  EXACT_RETURN_IF_ERROR(check_owner(peer, message.session));
  if (next_bucket_ == plan_->bucket_count()) {
    return give_up(Status(Code::invalid,
                          "bucket " + std::to_string(message.index) + " came after the last one"));
  }
  if (message.index != next_bucket_) {
    return give_up(Status(Code::invalid, "bucket " + std::to_string(message.index) +
                                             " came where bucket " + std::to_string(next_bucket_) +
                                             " belongs: send buckets in order"));
  }
  if (Status status = copy_bucket(message.index); !status.is_ok()) return give_up(status);
  next_bucket_++;
  deadline_ = now + limits_.timeout;
  return ipc::UpdateBucketDone{session_, message.index};
}

// Moves a bucket's bytes to the staging slot. The sender can still write to the segment, so digests
// must be those of a copy: the slot copies pieces of a tensor, and a tensor that lies whole in the
// bucket is copied here.
Status WeightSession::copy_bucket(uint64_t index) {
  EXACT_ASSIGN(std::span<const std::byte> payload,
               segment_->bucket(index, plan_->range(index).bytes()));
  for (const ipc::TensorSlice& slice : ipc::slices(*plan_, sizes_of(tensors_), index)) {
    const ExpectedTensor& tensor = tensors_[slice.tensor_index];
    std::span<const std::byte> piece = payload.first(slice.bytes);
    payload = payload.subspan(slice.bytes);
    if (slice.bytes == tensor.bytes) {
      copy_.assign(piece.begin(), piece.end());
      piece = copy_;
    }
    EXACT_RETURN_IF_ERROR(slot_->append(tensor.table_index, piece));
    if (slice.tensor_offset + slice.bytes == tensor.bytes) {
      EXACT_RETURN_IF_ERROR(slot_->verify(tensor.table_index, tensor.digest));
    }
  }
  return {};
}

Status WeightSession::commit(const std::string& peer, uint64_t request_id,
                             const ipc::UpdateCommit& message) {
  EXACT_RETURN_IF_ERROR(check_owner(peer, message.session));
  if (next_bucket_ != plan_->bucket_count()) {
    return give_up(Status(Code::invalid, "commit came after " + std::to_string(next_bucket_) +
                                             " of " + std::to_string(plan_->bucket_count()) +
                                             " buckets: send all of them first"));
  }
  if (Status status = slot_->complete(); !status.is_ok()) return give_up(status);
  if (Status status = engine_.commit_update(version_, policy_); !status.is_ok()) {
    return give_up(status);
  }
  state_ = State::committing;
  commit_request_ = request_id;
  release();
  return {};
}

Result<ipc::UpdateAborted> WeightSession::abort(const std::string& peer,
                                                const ipc::UpdateAbort& message) {
  EXACT_RETURN_IF_ERROR(check_owner(peer, message.session));
  close();
  return ipc::UpdateAborted{engine_.status().version.value};
}

std::optional<Status> WeightSession::expire(Clock::time_point now) {
  if (state_ != State::receiving || now < deadline_) return std::nullopt;
  return give_up(Status(Code::timeout, "no message of the update came for " +
                                           std::to_string(limits_.timeout.count()) + " ms"));
}

bool WeightSession::drop(const std::string& peer) {
  if (state_ == State::idle || peer != peer_) return false;
  if (state_ == State::committing) {
    peer_.clear();
    return false;
  }
  close();
  return true;
}

WeightSession::Commit WeightSession::take_commit() {
  EXACT_CHECK(state_ == State::committing, "a version became live that nobody committed");
  Commit commit{std::move(peer_), commit_request_};
  state_ = State::idle;
  peer_.clear();
  return commit;
}

std::optional<uint64_t> WeightSession::waiting_request(const std::string& peer) const {
  if (state_ != State::committing || peer != peer_) return std::nullopt;
  return commit_request_;
}

void WeightSession::close() {
  engine_.abort_update();
  state_ = State::idle;
  peer_.clear();
  release();
}

void WeightSession::release() {
  slot_ = nullptr;
  segment_.reset();
  plan_.reset();
  copy_ = {};
}

Status WeightSession::give_up(const Status& reason) {
  close();
  return Status(reason.code(), reason.message() + "; the update is dropped and version " +
                                   std::to_string(engine_.status().version.value) + " serves on");
}

}  // namespace exact::worker
