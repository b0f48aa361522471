// tensor_buckets.h owns the cutting of an update into buckets of whole tensors, for transports that
// read each tensor where it lies. Pure, and the same on both sides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace exact::ipc {

// Tensors [begin, end) of the manifest.
struct TensorRange {
  size_t begin = 0;
  size_t end = 0;
  friend bool operator==(const TensorRange&, const TensorRange&) = default;
};

// In order: as many tensors as have bucket_bytes together, but at least one.
inline std::vector<TensorRange> tensor_buckets(std::span<const uint64_t> tensor_bytes,
                                               uint64_t bucket_bytes) {
  std::vector<TensorRange> buckets;
  uint64_t room = 0;
  for (size_t i = 0; i < tensor_bytes.size(); i++) {
    if (buckets.empty() || tensor_bytes[i] > room) {
      buckets.push_back({i, i});
      room = bucket_bytes;
    }
    buckets.back().end = i + 1;
    room -= tensor_bytes[i] < room ? tensor_bytes[i] : room;
  }
  return buckets;
}

}  // namespace exact::ipc
