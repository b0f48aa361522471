// nccl_library.h owns NCCL as it is found at run time: nothing links to it, so a worker without it
// serves by every other transport. One communicator with the trainer as root, non-blocking: a rank
// that dies hangs a blocking one for ever. Only in builds with CUDA.
#pragma once

#if EXACT_WITH_CUDA

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/base/result.h"

namespace exact::ipc {

// The library's version as NCCL counts it (22809 is 2.28.9). unsupported: libnccl.so.2 is not found
// (EXACT_NCCL_LIBRARY names another file), or lacks a function.
Result<int> nccl_version();
// Two ranks may share a GPU from this version on, with NCCL_MULTI_RANK_GPU_ENABLE=1.
inline constexpr int kNcclSharesGpus = 23000;

Result<std::string> make_nccl_id();  // 128 bytes

// Every call but the destructor returns at once. One thread.
class NcclCommunicator {
 public:
  // Starts to connect on the current GPU: is_idle() says when all ranks have come.
  static Result<std::unique_ptr<NcclCommunicator>> create(const std::string& unique_id,
                                                          int32_t rank, int32_t ranks);
  ~NcclCommunicator();  // aborts what is under way
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  // True when the last call has been taken up, and the next may come. peer_lost: another rank is
  // gone or has failed.
  Result<bool> is_idle();
  // From rank 0 to all, in the order of `stream`.
  Status broadcast(void* buffer, uint64_t bytes, cudaStream_t stream);

 private:
  explicit NcclCommunicator(void* communicator) : communicator_(communicator) {}
  void* communicator_;
};

}  // namespace exact::ipc

#endif
