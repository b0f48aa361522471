#include "ipc/weight_nccl.h"

#include <algorithm>

#include "kernels/base/digest.h"

#if EXACT_WITH_CUDA

#include <cuda_runtime_api.h>

#include <array>
#include <set>

#include "ipc/bucket_plan.h"
#include "ipc/cuda_support.h"
#include "ipc/nccl_library.h"
#include "kernels/base/check.h"
#include "kernels/base/tensor.h"

namespace exact::ipc {
namespace {

// Each tensor's size rounded up to whole chunks: where tensors begin in the stream.
std::vector<uint64_t> padded(std::span<const uint64_t> tensor_bytes) {
  std::vector<uint64_t> sizes;
  for (const uint64_t bytes : tensor_bytes) {
    sizes.push_back(digest_chunk_count(bytes) * kDigestChunkBytes);
  }
  return sizes;
}

// A piece of a tensor, and where it lies in the bucket.
struct PlacedPiece {
  size_t tensor_index = 0;
  uint64_t tensor_offset = 0, bytes = 0, bucket_offset = 0;
};

struct NcclPlan {
  std::vector<uint64_t> tensor_bytes, padded_bytes;
  BucketPlan buckets;

  static Result<NcclPlan> make(std::vector<uint64_t> tensor_bytes, uint64_t bucket_bytes) {
    NcclPlan plan;
    plan.padded_bytes = padded(tensor_bytes);
    plan.tensor_bytes = std::move(tensor_bytes);
    EXACT_ASSIGN(plan.buckets,
                 BucketPlan::create(plan.padded_bytes, nccl_bucket_bytes(bucket_bytes)));
    return plan;
  }
  std::vector<PlacedPiece> pieces(uint64_t bucket) const {
    std::vector<PlacedPiece> placed;
    uint64_t offset = 0;
    for (const TensorSlice& slice : slices(buckets, padded_bytes, bucket)) {
      const uint64_t rest = tensor_bytes[slice.tensor_index] - slice.tensor_offset;
      placed.push_back(
          {slice.tensor_index, slice.tensor_offset, std::min(slice.bytes, rest), offset});
      offset += slice.bytes;
    }
    return placed;
  }
};

Result<Buffer> allocate(uint64_t bytes) {
  void* data = nullptr;
  EXACT_RETURN_IF_ERROR(cuda_error(cudaMalloc(&data, bytes),
                                   "the GPU has no room for a bucket of " +
                                       std::to_string(bytes >> 20) + " MiB: ask for smaller ones",
                                   Code::exhausted));
  return Buffer(data, bytes, [](void* memory) { cudaFree(memory); });
}

// What both sides have: a communicator, its stream and two halves.
class NcclEnd {
 public:
  ~NcclEnd() {
    communicator_.reset();  // first: it may hold a kernel on the stream
    if (stream_ == nullptr) return;
    cudaStreamSynchronize(stream_);
    for (cudaEvent_t event : arrived_) cudaEventDestroy(event);
    cudaStreamDestroy(stream_);
  }

  Status open(const std::string& unique_id, int32_t rank, int32_t ranks, uint64_t bucket_bytes) {
    EXACT_RETURN_IF_ERROR(
        cuda_error(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"));
    for (size_t i = 0; i < 2; i++) {
      EXACT_ASSIGN(halves_[i], allocate(bucket_bytes));
      EXACT_RETURN_IF_ERROR(
          cuda_error(cudaEventCreateWithFlags(&arrived_[i], cudaEventDisableTiming), "an event"));
    }
    EXACT_ASSIGN(communicator_, NcclCommunicator::create(unique_id, rank, ranks));
    return {};
  }
  std::byte* half(uint64_t index) { return static_cast<std::byte*>(halves_[index % 2].data()); }
  cudaStream_t stream() { return stream_; }

  // Starts the broadcast of bucket `index` if the communicator is free; else try again.
  Result<bool> start(uint64_t index, uint64_t bytes) {
    EXACT_ASSIGN(const bool idle, communicator_->is_idle());
    if (!idle) return false;
    EXACT_RETURN_IF_ERROR(communicator_->broadcast(half(index), bytes, stream_));
    return true;
  }
  // After start(): marks the end of the bucket once NCCL has put it on the stream.
  Result<bool> mark(uint64_t index) {
    EXACT_ASSIGN(const bool idle, communicator_->is_idle());
    if (!idle) return false;
    EXACT_RETURN_IF_ERROR(cuda_error(cudaEventRecord(arrived_[index % 2], stream_), "an event"));
    return true;
  }
  Result<bool> has_arrived(uint64_t index) {
    EXACT_ASSIGN(const bool idle, communicator_->is_idle());  // finds a rank that is gone
    (void)idle;
    const cudaError_t error = cudaEventQuery(arrived_[index % 2]);
    if (error == cudaErrorNotReady) return false;
    EXACT_RETURN_IF_ERROR(cuda_error(error, "a broadcast"));
    return true;
  }

 private:
  cudaStream_t stream_ = nullptr;
  std::array<Buffer, 2> halves_;
  std::array<cudaEvent_t, 2> arrived_{};
  std::unique_ptr<NcclCommunicator> communicator_;
};

class NcclChannel final : public WeightChannel {
 public:
  explicit NcclChannel(NcclPlan plan) : plan_(std::move(plan)) {}
  Status open(const NcclGroup& group) {
    return end_.open(group.unique_id, group.rank, group.ranks, plan_.buckets.bucket_bytes);
  }

  void describe(UpdateReady&) const override {}
  uint64_t bucket_count() const override { return plan_.buckets.bucket_count(); }
  Status expect(uint64_t index) override {
    EXACT_CHECK(index == expected_ && index < bucket_count(), "buckets are expected in order");
    expected_++;
    return {};
  }
  Result<std::optional<BucketPieces>> poll() override {
    EXACT_RETURN_IF_ERROR(advance());
    if (released_ == marked_) return std::optional<BucketPieces>();
    EXACT_ASSIGN(const bool arrived, end_.has_arrived(released_));
    if (!arrived) return std::optional<BucketPieces>();
    BucketPieces bucket;
    bucket.on_device = true;
    for (const PlacedPiece& piece : plan_.pieces(released_)) {
      bucket.pieces.push_back({piece.tensor_index, piece.tensor_offset, piece.bytes,
                               end_.half(released_) + piece.bucket_offset});
    }
    return std::optional<BucketPieces>(std::move(bucket));
  }
  void release() override {
    EXACT_CHECK(released_ < marked_, "no bucket to release");
    released_++;
  }

 private:
  Status advance() {
    if (started_ > marked_) {
      EXACT_ASSIGN(const bool marked, end_.mark(marked_));
      if (!marked) return {};
      marked_++;
    }
    if (started_ < expected_ && started_ < released_ + kBucketsInFlight) {
      EXACT_ASSIGN(const bool started, end_.start(started_, plan_.buckets.range(started_).bytes()));
      if (started) started_++;
    }
    return {};
  }

  NcclPlan plan_;
  NcclEnd end_;
  uint64_t expected_ = 0, started_ = 0, marked_ = 0, released_ = 0;
};

class NcclRootImpl final : public NcclRoot {
 public:
  NcclRootImpl(NcclPlan plan, std::vector<std::span<const std::byte>> tensors)
      : plan_(std::move(plan)), tensors_(std::move(tensors)) {}
  Status open(const std::string& unique_id, int32_t ranks) {
    return end_.open(unique_id, 0, ranks, plan_.buckets.bucket_bytes);
  }
  uint64_t bucket_count() const override { return plan_.buckets.bucket_count(); }

  Status send(uint64_t index) override {
    EXACT_CHECK(index == filled_ && index < bucket_count(), "buckets are sent in order");
    for (const PlacedPiece& piece : plan_.pieces(index)) {
      EXACT_RETURN_IF_ERROR(
          cuda_error(cudaMemcpyAsync(end_.half(index) + piece.bucket_offset,
                                     tensors_[piece.tensor_index].data() + piece.tensor_offset,
                                     piece.bytes, cudaMemcpyDefault, end_.stream()),
                     "gathering a bucket"));
    }
    filled_++;
    return advance();
  }
  Status advance() override {
    if (started_ > marked_) {
      EXACT_ASSIGN(const bool marked, end_.mark(marked_));
      if (!marked) return {};
      marked_++;
    }
    if (started_ == filled_) {
      if (marked_ == 0) return {};
      return end_.has_arrived(marked_ - 1).status();
    }
    EXACT_ASSIGN(const bool started, end_.start(started_, plan_.buckets.range(started_).bytes()));
    if (started) started_++;
    return {};
  }

 private:
  NcclPlan plan_;
  std::vector<std::span<const std::byte>> tensors_;
  NcclEnd end_;
  uint64_t filled_ = 0, started_ = 0, marked_ = 0;
};

std::vector<uint64_t> sizes_of(std::span<const std::span<const std::byte>> tensors) {
  std::vector<uint64_t> sizes;
  for (const auto& tensor : tensors) sizes.push_back(tensor.size());
  return sizes;
}

}  // namespace

Result<std::unique_ptr<WeightChannel>> open_nccl(const NcclGroup& group,
                                                 const std::vector<uint64_t>& tensor_bytes,
                                                 uint64_t bucket_bytes) {
  if (group.rank < 1) {
    return Status(Code::invalid, "nccl.rank is " + std::to_string(group.rank) +
                                     ": the trainer is 0, workers count from 1");
  }
  EXACT_ASSIGN(NcclPlan plan, NcclPlan::make(tensor_bytes, bucket_bytes));
  auto channel = std::make_unique<NcclChannel>(std::move(plan));
  EXACT_RETURN_IF_ERROR(channel->open(group));
  return std::unique_ptr<WeightChannel>(std::move(channel));
}

Status check_nccl_devices(std::span<const std::string> worker_uuids) {
  EXACT_ASSIGN(const int version, nccl_version());
  EXACT_ASSIGN(const std::string ours, current_device_uuid());
  std::set<std::string> seen{ours};
  for (const std::string& uuid : worker_uuids) {
    if (uuid.empty()) {
      return Status(Code::unsupported, "a worker has no GPU: publish to it through shared memory");
    }
    if (seen.insert(uuid).second || version >= kNcclSharesGpus) continue;
    return Status(Code::unsupported, "two ranks are on GPU " + uuid +
                                         ", which needs NCCL 2.30 or newer with "
                                         "NCCL_MULTI_RANK_GPU_ENABLE=1; this is " +
                                         std::to_string(version / 10000) + "." +
                                         std::to_string(version / 100 % 100) +
                                         ": publish through cuda_ipc on one GPU");
  }
  return {};
}

Result<std::string> make_nccl_unique_id() {
  return make_nccl_id();
}

Result<std::unique_ptr<NcclRoot>> NcclRoot::create(const std::string& unique_id, int32_t ranks,
                                                   std::vector<std::span<const std::byte>> tensors,
                                                   uint64_t bucket_bytes) {
  EXACT_ASSIGN(NcclPlan plan, NcclPlan::make(sizes_of(tensors), bucket_bytes));
  auto root = std::make_unique<NcclRootImpl>(std::move(plan), std::move(tensors));
  EXACT_RETURN_IF_ERROR(root->open(unique_id, ranks));
  return std::unique_ptr<NcclRoot>(std::move(root));
}

#else

#include "ipc/no_cuda.h"

namespace exact::ipc {

Result<std::unique_ptr<WeightChannel>> open_nccl(const NcclGroup&, const std::vector<uint64_t>&,
                                                 uint64_t) {
  return no_cuda();
}
Status check_nccl_devices(std::span<const std::string>) {
  return no_cuda();
}
Result<std::string> make_nccl_unique_id() {
  return no_cuda();
}
Result<std::unique_ptr<NcclRoot>> NcclRoot::create(const std::string&, int32_t,
                                                   std::vector<std::span<const std::byte>>,
                                                   uint64_t) {
  return no_cuda();
}

#endif

uint64_t nccl_bucket_bytes(uint64_t bucket_bytes) {
  return std::max<uint64_t>(1, bucket_bytes / kDigestChunkBytes) * kDigestChunkBytes;
}

}  // namespace exact::ipc
