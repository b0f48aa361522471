// device_copies.h owns copies that run beside a step's operations, on a stream of their own, and
// the digests of what they copied (digest_copy.h). One host thread.
#pragma once

#include <cuda_runtime_api.h>

#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/digest_copy.h"
#include "kernels/cuda/memory.h"

namespace exact::cuda {

class DeviceCopies {
 public:
  explicit DeviceCopies(int multiprocessors) : multiprocessors_(multiprocessors) {}
  ~DeviceCopies();
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;

  // Starts them behind what `after` has been given so far (null: the default stream). A copy
  // without `to` is only digested. Waits for copies that are still under way.
  Status start(std::span<const DeviceCopy> copies, cudaStream_t after);
  // Fills the chunks' digests once all is done.
  Result<bool> done();
  Status wait();

 private:
  // A chunk that the host digests: its bytes are fetched.
  struct ShortChunk {
    Digest128* digest;
    size_t offset;  // in short_bytes_
    uint64_t bytes;
  };

  Status prepare(size_t copies, uint64_t chunks, uint64_t short_chunks);
  void collect();

  int multiprocessors_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t before_ = nullptr, finished_ = nullptr;
  bool running_ = false;
  Buffer device_pieces_, device_digests_;
  Buffer pinned_pieces_, pinned_digests_, pinned_short_;
  std::vector<DeviceCopy> copies_;  // under way
  std::vector<ShortChunk> short_chunks_;
};

}  // namespace exact::cuda
