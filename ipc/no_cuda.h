// no_cuda.h owns what the GPU transports answer in a build without CUDA.
#pragma once

#include "kernels/base/result.h"

namespace exact::ipc {

inline Status no_cuda() {
  return Status(Code::unsupported,
                "this build has no CUDA parts: publish through shared memory, or build where nvcc "
                "is found");
}

}  // namespace exact::ipc
