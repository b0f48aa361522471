// weight_cuda_ipc.h owns the transport of weights between two processes on one GPU: the trainer
// says where its tensors lie, the worker maps that memory and copies from it. No byte moves twice.
//
// Nothing in the message is believed: the driver knows handles and sizes, and a tensor that does
// not lie inside what the driver mapped is refused. Mappings live from the bucket that needs them
// to the last one that does. Builds without CUDA have the same functions; they answer unsupported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ipc/weight_channel.h"

namespace exact::ipc {

// ---- the worker's side: whole tensors in buckets (tensor_buckets.h)
// invalid: places or handles of the wrong number or size; unsupported: the tensors lie on another
// GPU than `device_uuid`, or this build has no CUDA parts; device: the driver does not know the
// event. poll(): invalid or corrupt, for a handle that can't be opened and a tensor out of bounds.
Result<std::unique_ptr<WeightChannel>> open_cuda_ipc(const CudaMemory& memory,
                                                     std::vector<uint64_t> tensor_bytes,
                                                     uint64_t bucket_bytes,
                                                     const std::string& device_uuid);

// ---- the trainer's side
struct DeviceTensor {
  const std::byte* data = nullptr;  // aligned to 16 bytes
  uint64_t bytes = 0;               // a multiple of 16
};

// Says where the tensors lie, and keeps the event that orders the worker's reads after what
// `stream` (a cudaStream_t; null: the default stream) has been given. Must live until the update
// has ended, and nobody may write to the tensors until then.
class CudaExport {
 public:
  // unsupported: memory that can't be shared (cudaMallocAsync, expandable_segments), not aligned,
  // or on several GPUs; the sentence says what to do.
  static Result<std::unique_ptr<CudaExport>> create(std::span<const DeviceTensor> tensors,
                                                    void* stream = nullptr);
  virtual ~CudaExport() = default;
  virtual const CudaMemory& memory() const = 0;
};

}  // namespace exact::ipc
