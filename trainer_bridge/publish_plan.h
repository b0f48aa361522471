// publish_plan.h owns the plan of a weight update: the manifest, and which bytes of which tensor
// lie in which bucket. Pure: it reads the trainer's memory and talks to nobody.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ipc/bucket_plan.h"
#include "ipc/messages.h"
#include "kernels/base/result.h"
#include "trainer_bridge/weight_publisher.h"

namespace exact::bridge {

// The tensors as a manifest, each with the xxh3-128 of its bytes. invalid: names the tensor that is
// empty, twice there, or whose bytes are not those of its shape in bf16.
Result<std::vector<ipc::ManifestTensor>> make_manifest(std::span<const NamedTensor> tensors);

// As make_manifest, without the digests: for tensors that the host can't read.
Result<std::vector<ipc::ManifestTensor>> describe_tensors(std::span<const NamedTensor> tensors);

// The stream of all tensors' bytes, in order, cut into buckets.
class PublishPlan {
 public:
  // `tensors` must outlive the plan.
  static Result<PublishPlan> make(std::span<const NamedTensor> tensors, uint64_t bucket_bytes);

  uint64_t bucket_count() const { return buckets_.bucket_count(); }
  uint64_t stream_bytes() const { return buckets_.stream_bytes; }
  // Bytes in bucket `index`; all but the last are full.
  uint64_t payload_bytes(uint64_t index) const { return buckets_.range(index).bytes(); }
  // Copies bucket `index` to the front of `out`.
  void fill(uint64_t index, std::span<std::byte> out) const;

 private:
  std::span<const NamedTensor> tensors_;
  std::vector<uint64_t> tensor_bytes_;
  ipc::BucketPlan buckets_;
};

}  // namespace exact::bridge
