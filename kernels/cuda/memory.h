// memory.h owns memory of the GPU and pinned memory of the host, and the sentences for CUDA errors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/result.h"
#include "kernels/base/tensor.h"

namespace exact::cuda {

// ok, or device: "what: CUDA's words".
Status cuda_status(cudaError_t error, std::string_view what);

// Not zeroed. exhausted: says how much is free.
Result<Buffer> allocate_device(size_t bytes);
Result<Buffer> allocate_pinned(size_t bytes);
// 32 lower-case hex digits.
std::string uuid_text(const cudaUUID_t& uuid);

// Small inputs and outputs of operations: memory on both sides with the same offsets, handed out in
// order and taken back all at once, when the stream has been waited for.
class TransferArena {
 public:
  // Copies to the device on `stream`; the host's bytes are free again at once.
  Result<const void*> push(std::span<const std::byte> bytes, cudaStream_t stream);
  // Device memory whose contents collect() copies to `host`.
  Result<void*> expect(std::span<std::byte> host);
  // Device memory of so many bytes, which collect() hands to `take` on the host's side.
  Result<void*> expect(size_t bytes, std::function<void(const std::byte*)> take);
  // Enqueues the copies of what was expected. Call before waiting for the stream.
  Status fetch(cudaStream_t stream);
  // After the wait: hands out the results and takes all memory back. Results of a failed stream are
  // dropped.
  void collect(bool failed);

 private:
  // The same bytes on both sides.
  struct Slot {
    std::byte* device;
    std::byte* pinned;
  };
  struct Output {
    size_t bytes;
    Slot slot;
    std::byte* host;  // where they are copied to; null: they are taken
    std::function<void(const std::byte*)> take;
  };
  Result<Slot> take(size_t bytes);

  Buffer device_, pinned_;
  std::vector<Buffer> outgrown_;  // which operations in flight may still use
  std::vector<Output> outputs_;
  size_t used_ = 0;
};

}  // namespace exact::cuda
