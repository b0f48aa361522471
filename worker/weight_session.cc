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

// Fields that only one transport has. What a message says and the worker does not do is refused.
Status check_transport_fields(const ipc::UpdateBegin& message) {
  const auto is_stray = [&](bool has, ipc::WeightTransport of) {
    return has && message.transport != static_cast<uint8_t>(of);
  };
  const auto refuse = [](const char* field, const char* transport) {
    return Status(Code::invalid, std::string(field) + " is given, but transport is not " +
                                     transport + ": leave it empty");
  };
  const ipc::CudaMemory& cuda = message.cuda;
  const bool has_cuda = !cuda.device_uuid.empty() || !cuda.event.empty() ||
                        !cuda.allocations.empty() || !cuda.places.empty();
  const bool has_nccl =
      !message.nccl.unique_id.empty() || message.nccl.rank != 0 || message.nccl.ranks != 0;
  if (is_stray(has_cuda, ipc::WeightTransport::cuda_ipc)) return refuse("cuda", "cuda_ipc (1)");
  if (is_stray(has_nccl, ipc::WeightTransport::nccl)) return refuse("nccl", "nccl (2)");
  if (is_stray(!message.path.empty(), ipc::WeightTransport::disk))
    return refuse("path", "disk (3)");
  return {};
}

}  // namespace

WeightSession::~WeightSession() {
  if (slot_ != nullptr) slot_->abandon();
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
  if (message.policy > static_cast<uint8_t>(UpdatePolicy::keep)) {
    return Status(Code::invalid, "policy is " + std::to_string(message.policy) +
                                     "; it must be wait (0), recompute (1), abort (2) or keep (3)");
  }
  if (message.bucket_bytes == 0) {
    return Status(Code::invalid, "bucket_bytes is 0: give each bucket at least one byte");
  }
  if (!message.weights_digest.empty() && !Digest128::from_hex(message.weights_digest)) {
    return Status(Code::invalid,
                  "weights_digest is not 32 lower-case hex digits: give the whole model's digest, "
                  "or none");
  }
  EXACT_RETURN_IF_ERROR(channels_.check(message.transport));
  return check_transport_fields(message);
}

Result<ipc::UpdateReady> WeightSession::begin(const std::string& peer,
                                              const ipc::UpdateBegin& message,
                                              Clock::time_point now) {
  if (!next_state(state_, UpdateEvent::begin)) {
    return Status(Code::exhausted, std::string("an update by ") +
                                       (peer == peer_ ? "this" : "another") +
                                       " client is under way: try again when it has ended");
  }
  EXACT_RETURN_IF_ERROR(check_begin(message));
  EXACT_ASSIGN(ipc::UpdateReady ready, open(message));
  move(UpdateEvent::begin);
  peer_ = peer;
  version_ = WeightVersion{message.weight_version};
  policy_ = static_cast<UpdatePolicy>(message.policy);
  weights_digest_ = message.weights_digest;
  next_bucket_ = 0;
  deadline_ = now + limits_.timeout;
  if (channel_->bucket_count() == 0) {  // a change of no tensor
    if (const Status status = verify_whole(); !status.is_ok()) return give_up(status);
  }
  return ready;
}

// All that can fail of a begin: nothing is open after an error.
Result<ipc::UpdateReady> WeightSession::open(const ipc::UpdateBegin& message) {
  const bool is_whole = message.base_version == 0;
  EXACT_ASSIGN(tensors_, match_manifest(message.tensors, tensor_table(engine_.config()), is_whole));
  ChannelPlan plan;
  plan.session = random_session();
  plan.tensor_bytes = sizes_of(tensors_);
  EXACT_ASSIGN(plan.buckets, ipc::BucketPlan::create(plan.tensor_bytes, 1));
  plan.buckets.bucket_bytes = std::max<uint64_t>(
      1, std::min({message.bucket_bytes, limits_.max_bucket_bytes, plan.buckets.stream_bytes}));
  EXACT_ASSIGN(auto channel, channels_.make(message, plan));
  EXACT_ASSIGN(slot_, engine_.begin_update({WeightVersion{message.base_version}, message.in_place,
                                            static_cast<UpdatePolicy>(message.policy)}));
  channel_ = std::move(channel);
  session_ = plan.session;

  ipc::UpdateReady ready;
  ready.session = session_;
  ready.bucket_bytes = plan.buckets.bucket_bytes;
  ready.timeout_ms = static_cast<int32_t>(limits_.timeout.count());
  channel_->describe(ready);
  return ready;
}

Status WeightSession::check_owner(const std::string& peer, uint64_t session) const {
  if (state_ == UpdateState::idle || peer != peer_ || session != session_) {
    return Status(Code::invalid, "session " + std::to_string(session) +
                                     " is not an open update of this client: begin a new one");
  }
  if (state_ == UpdateState::committing) {
    return Status(Code::invalid,
                  "the update is committed and can't be changed: it is live once running requests "
                  "allow it");
  }
  return {};
}

Status WeightSession::bucket(const std::string& peer, uint64_t request_id,
                             const ipc::UpdateBucket& message, Clock::time_point now) {
  EXACT_RETURN_IF_ERROR(check_owner(peer, message.session));
  const std::string name = "bucket " + std::to_string(message.index);
  if (!next_state(state_, UpdateEvent::bucket) || next_bucket_ == channel_->bucket_count()) {
    return give_up(Status(Code::invalid, name + " came after the last one"));
  }
  if (message.index != next_bucket_) {
    return give_up(Status(Code::invalid, name + " came where bucket " +
                                             std::to_string(next_bucket_) +
                                             " belongs: send buckets in order"));
  }
  if (announced_.size() == ipc::kBucketsInFlight) {
    return give_up(Status(Code::invalid, name + " came while " + std::to_string(announced_.size()) +
                                             " are unanswered: wait for UpdateBucketDone"));
  }
  if (const Status status = channel_->expect(message.index); !status.is_ok()) {
    return give_up(status);
  }
  move(UpdateEvent::bucket);
  announced_.push_back({request_id, message.index});
  next_bucket_++;
  deadline_ = now + limits_.timeout;
  return {};
}

void WeightSession::advance(Clock::time_point now) {
  while (!announced_.empty()) {
    const Result<bool> taken = take_bucket();
    if (!taken) {
      (void)give_up(taken.status());  // the answers of the buckets say it
      return;
    }
    if (!*taken) return;
    deadline_ = now + limits_.timeout;
  }
}

Result<bool> WeightSession::take_bucket() {
  if (!device_copy_) {
    EXACT_ASSIGN(std::optional<ipc::BucketPieces> bucket, channel_->poll());
    if (!bucket) return false;
    if (!bucket->on_device) {
      EXACT_RETURN_IF_ERROR(copy_pieces(*bucket));
      EXACT_RETURN_IF_ERROR(finish_bucket(*bucket));
      return true;
    }
    for (const ipc::TensorPiece& piece : bucket->pieces) {
      EXACT_RETURN_IF_ERROR(slot_->append_on_device(tensors_[piece.tensor_index].table_index,
                                                    piece.tensor_offset, piece.data, piece.bytes));
    }
    device_copy_ = std::move(bucket);
  }
  EXACT_ASSIGN(const bool done, slot_->device_copies_done());
  if (!done) return false;
  const ipc::BucketPieces copied = std::move(*std::exchange(device_copy_, std::nullopt));
  EXACT_RETURN_IF_ERROR(finish_bucket(copied));
  return true;
}

// From host memory to the staging slot. The sender can still write to its bytes, so digests must be
// those of a copy: the slot copies pieces of a tensor, and a tensor that lies whole in the bucket
// is copied here.
Status WeightSession::copy_pieces(const ipc::BucketPieces& bucket) {
  for (const ipc::TensorPiece& piece : bucket.pieces) {
    const ExpectedTensor& tensor = tensors_[piece.tensor_index];
    std::span<const std::byte> bytes(piece.data, static_cast<size_t>(piece.bytes));
    if (piece.bytes == tensor.bytes) {
      copy_.assign(bytes.begin(), bytes.end());
      bytes = copy_;
    }
    EXACT_RETURN_IF_ERROR(slot_->append(tensor.table_index, bytes));
  }
  return {};
}

// The oldest bucket is in the slot: the digests of tensors that end in it, and its answer.
Status WeightSession::finish_bucket(const ipc::BucketPieces& bucket) {
  for (const ipc::TensorPiece& piece : bucket.pieces) {
    const ExpectedTensor& tensor = tensors_[piece.tensor_index];
    if (piece.tensor_offset + piece.bytes != tensor.bytes) continue;
    EXACT_RETURN_IF_ERROR(slot_->verify(tensor.table_index, tensor.digest));
  }
  channel_->release();
  const bool is_last = announced_.size() == 1 && next_bucket_ == channel_->bucket_count();
  if (is_last) EXACT_RETURN_IF_ERROR(verify_whole());
  const Announced done = announced_.front();
  announced_.pop_front();
  answers_.push_back({peer_, done.request_id, ipc::UpdateBucketDone{session_, done.index}});
  return {};
}

Status WeightSession::verify_whole() {
  EXACT_RETURN_IF_ERROR(slot_->complete());
  if (!weights_digest_.empty()) {
    const std::string digest = slot_->digest().to_hex();
    if (digest != weights_digest_) {
      return Status(Code::corrupt, "the whole model has digest " + digest +
                                       ", not the weights_digest " + weights_digest_ +
                                       " it was announced with");
    }
  }
  move(UpdateEvent::all_verified);
  return {};
}

Status WeightSession::commit(const std::string& peer, uint64_t request_id,
                             const ipc::UpdateCommit& message) {
  EXACT_RETURN_IF_ERROR(check_owner(peer, message.session));
  if (!next_state(state_, UpdateEvent::commit)) {
    return give_up(Status(Code::invalid, "commit came after " +
                                             std::to_string(next_bucket_ - announced_.size()) +
                                             " of " + std::to_string(channel_->bucket_count()) +
                                             " buckets were taken: send all of them first, and "
                                             "wait for their answers"));
  }
  if (const Status status = engine_.commit_update(version_, policy_); !status.is_ok()) {
    return give_up(status);
  }
  move(UpdateEvent::commit);
  commit_request_ = request_id;
  release();
  return {};
}

Result<ipc::UpdateAborted> WeightSession::abort(const std::string& peer,
                                                const ipc::UpdateAbort& message) {
  EXACT_RETURN_IF_ERROR(check_owner(peer, message.session));
  close(UpdateEvent::abort, Status(Code::cancelled, "the update was aborted by its client"));
  return ipc::UpdateAborted{engine_.status().version.value};
}

std::optional<Status> WeightSession::expire(Clock::time_point now) {
  if (!next_state(state_, UpdateEvent::failure) || now < deadline_) return std::nullopt;
  const std::string what = announced_.empty()
                               ? "no message of the update"
                               : "bucket " + std::to_string(announced_.front().index) +
                                     " was announced, but none of its bytes";
  return give_up(
      Status(Code::timeout, what + " came for " + std::to_string(limits_.timeout.count()) + " ms"));
}

bool WeightSession::drop(const std::string& peer) {
  if (state_ == UpdateState::idle || peer != peer_) return false;
  if (state_ == UpdateState::committing) {
    peer_.clear();
    return false;
  }
  announced_.clear();  // nobody is left to answer
  close(UpdateEvent::failure, Status(Code::peer_lost, "the client is gone"));
  return true;
}

WeightSession::Commit WeightSession::take_commit() {
  EXACT_CHECK(state_ == UpdateState::committing, "a version became live that nobody committed");
  Commit commit{std::move(peer_), commit_request_};
  move(UpdateEvent::live);
  peer_.clear();
  return commit;
}

bool WeightSession::is_unanswered(const std::string& peer, uint64_t request_id) const {
  const auto is_answer = [&](const BucketAnswer& answer) {
    return answer.peer == peer && answer.request_id == request_id;
  };
  if (std::ranges::any_of(answers_, is_answer)) return true;
  if (state_ == UpdateState::idle || peer != peer_) return false;
  if (state_ == UpdateState::committing) return request_id == commit_request_;
  return std::ranges::any_of(
      announced_, [&](const Announced& bucket) { return bucket.request_id == request_id; });
}

void WeightSession::move(UpdateEvent event) {
  const std::optional<UpdateState> next = next_state(state_, event);
  EXACT_CHECK(next.has_value(), "an event that the update's state does not allow");
  state_ = *next;
}

void WeightSession::close(UpdateEvent why, const Status& reason) {
  slot_->abandon();  // before the memory that it reads goes with the channel
  engine_.abort_update(reason.message());
  for (const Announced& bucket : announced_) {
    answers_.push_back({peer_, bucket.request_id, with_outcome(reason)});
  }
  release();
  move(why);
  peer_.clear();
}

void WeightSession::release() {
  slot_ = nullptr;
  channel_.reset();
  announced_.clear();
  device_copy_.reset();
  copy_ = {};
}

Status WeightSession::give_up(const Status& reason) {
  close(UpdateEvent::failure, reason);
  return with_outcome(reason);
}

Status WeightSession::with_outcome(const Status& reason) const {
  const EngineStatus status = engine_.status();
  const std::string outcome =
      status.health == EngineHealth::serving
          ? " and version " + std::to_string(status.version.value) + " serves on"
          : ", and the worker is " + std::string(engine_health_name(status.health)) + ": " +
                status.health_reason;
  return Status(reason.code(), reason.message() + "; the update is dropped" + outcome);
}

}  // namespace exact::worker
