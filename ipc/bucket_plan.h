// bucket_plan.h owns the cutting of a weight update into buckets: pure arithmetic, the same on both
// sides. The tensors' bytes in the manifest's order are one stream; bucket i holds stream bytes
// [i * bucket_bytes, (i + 1) * bucket_bytes). Refuses sizes whose sum does not fit 64 bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/result.h"

namespace exact::ipc {

// Bytes [begin, end) of the stream.
struct BucketRange {
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t bytes() const { return end - begin; }
  friend bool operator==(const BucketRange&, const BucketRange&) = default;
};

// A piece of one tensor. Pieces of a bucket lie one after another in it, in this order.
struct TensorSlice {
  size_t tensor_index = 0;
  uint64_t tensor_offset = 0;  // bytes
  uint64_t bytes = 0;          // never 0
  friend bool operator==(const TensorSlice&, const TensorSlice&) = default;
};

struct BucketPlan {
  uint64_t stream_bytes = 0;
  uint64_t bucket_bytes = 0;  // not 0

  // invalid: buckets of 0 bytes, or tensors whose sizes add up to more than 64 bits hold.
  static Result<BucketPlan> create(std::span<const uint64_t> tensor_bytes, uint64_t bucket_bytes) {
    if (bucket_bytes == 0) {
      return Status(Code::invalid, "bucket_bytes is 0: give each bucket at least one byte");
    }
    BucketPlan plan{0, bucket_bytes};
    for (const uint64_t bytes : tensor_bytes) {
      if (bytes > UINT64_MAX - plan.stream_bytes) {
        return Status(Code::invalid, "the tensors' sizes add up to more than 2^64 bytes");
      }
      plan.stream_bytes += bytes;
    }
    return plan;
  }

  uint64_t bucket_count() const {
    EXACT_CHECK(bucket_bytes > 0, "a plan without a bucket size");
    return stream_bytes / bucket_bytes + (stream_bytes % bucket_bytes != 0 ? 1 : 0);
  }

  BucketRange range(uint64_t index) const {
    EXACT_CHECK(index < bucket_count(), "bucket out of range");
    const uint64_t begin = index * bucket_bytes;
    return {begin, begin + std::min(bucket_bytes, stream_bytes - begin)};
  }
};

// The pieces of tensors that bucket `index` holds. Tensors of 0 bytes have none. The sizes are the
// plan's own.
inline std::vector<TensorSlice> slices(const BucketPlan& plan,
                                       std::span<const uint64_t> tensor_bytes, uint64_t index) {
  const BucketRange range = plan.range(index);
  std::vector<TensorSlice> pieces;
  uint64_t tensor_begin = 0;  // in the stream
  for (size_t tensor = 0; tensor < tensor_bytes.size() && tensor_begin < range.end; ++tensor) {
    const uint64_t tensor_end = tensor_begin + tensor_bytes[tensor];
    const uint64_t begin = std::max(tensor_begin, range.begin);
    const uint64_t end = std::min(tensor_end, range.end);
    if (begin < end) pieces.push_back({tensor, begin - tensor_begin, end - begin});
    tensor_begin = tensor_end;
  }
  return pieces;
}

}  // namespace exact::ipc
