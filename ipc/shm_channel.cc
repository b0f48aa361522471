#include "ipc/shm_channel.h"

#include <utility>

#include "kernels/base/check.h"

namespace exact::ipc {

ShmChannel::ShmChannel(std::unique_ptr<WeightSegment> segment, const BucketPlan& plan,
                       std::vector<uint64_t> tensor_bytes)
    : segment_(std::move(segment)), plan_(plan), tensor_bytes_(std::move(tensor_bytes)) {}

Result<std::unique_ptr<WeightChannel>> ShmChannel::create(uint64_t session, const BucketPlan& plan,
                                                          std::vector<uint64_t> tensor_bytes) {
  EXACT_ASSIGN(auto segment, WeightSegment::create(session, plan.bucket_bytes));
  return std::unique_ptr<WeightChannel>(
      new ShmChannel(std::move(segment), plan, std::move(tensor_bytes)));
}

void ShmChannel::describe(UpdateReady& ready) const {
  ready.segment_name = segment_->name();
  ready.segment_bytes = segment_->bytes();
}

// A bucket that is announced is there: the sender seals it first.
Status ShmChannel::expect(uint64_t index) {
  expected_.push_back(index);
  return {};
}

Result<std::optional<BucketPieces>> ShmChannel::poll() {
  if (expected_.empty()) return std::optional<BucketPieces>();
  const uint64_t index = expected_.front();
  EXACT_ASSIGN(std::span<const std::byte> payload,
               segment_->bucket(index, plan_.range(index).bytes()));
  BucketPieces bucket;
  for (const TensorSlice& slice : slices(plan_, tensor_bytes_, index)) {
    bucket.pieces.push_back({slice.tensor_index, slice.tensor_offset, slice.bytes, payload.data()});
    payload = payload.subspan(slice.bytes);
  }
  return std::optional<BucketPieces>(std::move(bucket));
}

void ShmChannel::release() {
  EXACT_CHECK(!expected_.empty(), "a bucket is released that nobody expected");
  expected_.pop_front();
}

}  // namespace exact::ipc
