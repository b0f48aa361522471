// weight_channel.h owns the worker's end of a weight update's transport: bytes of tensors, bucket
// by bucket, from wherever the trainer put them. It knows no model and no state of the update: who
// may send what, and whether the bytes are the right ones, is the session's to judge.
//
// The trainer has at most two buckets unanswered: one on its way while the other is taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "ipc/weight_messages.h"
#include "kernels/base/result.h"

namespace exact::ipc {

inline constexpr uint64_t kBucketsInFlight = 2;

// Bytes [tensor_offset, tensor_offset + bytes) of the manifest's tensor `tensor_index`.
struct TensorPiece {
  size_t tensor_index = 0;
  uint64_t tensor_offset = 0;
  uint64_t bytes = 0;
  const std::byte* data = nullptr;
};

struct BucketPieces {
  std::vector<TensorPiece> pieces;  // in the manifest's order, of a tensor in ascending order
  bool on_device = false;           // data points to memory of the worker's GPU
};

class WeightChannel {
 public:
  virtual ~WeightChannel() = default;

  // What the trainer must know of this transport: its fields of UpdateReady.
  virtual void describe(UpdateReady& ready) const = 0;
  virtual uint64_t bucket_count() const = 0;

  // The trainer says that bucket `index` is there or on its way. The session calls in order, and
  // never for more than kBucketsInFlight buckets that are not released.
  virtual Status expect(uint64_t index) = 0;
  // The oldest bucket that is expected and not released, once it has arrived; nullopt until then.
  // Never waits. Its bytes stand until release(); the trainer may still write to them, so digests
  // are of a copy. corrupt, device or peer_lost: it will not come.
  virtual Result<std::optional<BucketPieces>> poll() = 0;
  // That bucket has been copied: nothing reads it any more.
  virtual void release() = 0;
};

}  // namespace exact::ipc
