// weight_nccl.h owns the transport of weights by NCCL: the trainer, rank 0, broadcasts each bucket
// to every worker of the group at once, while the bucket before is being verified.
//
// Tensors begin at multiples of a digest's chunk (64 KiB) in the stream that is cut into buckets,
// so that each piece of one is a number of whole chunks. Both sides compute the same plan. Builds
// without CUDA have the same functions; they answer unsupported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ipc/weight_channel.h"

namespace exact::ipc {

// What a bucket can hold: bucket_bytes cut to whole chunks, at least one.
uint64_t nccl_bucket_bytes(uint64_t bucket_bytes);

// ---- the worker's side
// Starts to connect; buckets arrive when all ranks have come. invalid: an id or rank that can't be;
// unsupported: no NCCL, or no CUDA parts; exhausted: no room for two buckets. poll(): peer_lost.
Result<std::unique_ptr<WeightChannel>> open_nccl(const NcclGroup& group,
                                                 const std::vector<uint64_t>& tensor_bytes,
                                                 uint64_t bucket_bytes);

// ---- the trainer's side
// unsupported: no NCCL, or two of the ranks share a GPU and this NCCL is older than 2.30. UUIDs as
// HelloReply has them; the trainer's own is that of the current GPU.
Status check_nccl_devices(std::span<const std::string> worker_uuids);
Result<std::string> make_nccl_unique_id();

class NcclRoot {
 public:
  // `tensors`: host or device memory of each tensor of the manifest; kept until the update has
  // ended. Starts to connect to ranks - 1 workers.
  static Result<std::unique_ptr<NcclRoot>> create(const std::string& unique_id, int32_t ranks,
                                                  std::vector<std::span<const std::byte>> tensors,
                                                  uint64_t bucket_bytes);
  virtual ~NcclRoot() = default;
  virtual uint64_t bucket_count() const = 0;
  // Starts bucket `index`, in order; every worker must have answered index - 2. Never waits.
  virtual Status send(uint64_t index) = 0;
  // Call until every worker has answered: starts what could not start before. peer_lost: a rank is
  // gone.
  virtual Status advance() = 0;
};

}  // namespace exact::ipc
