// cuda_backend.h makes the backend of a Hopper GPU: the whole contract at the hardware's speed.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace exact {

struct CudaOptions {
  int device = 0;      // as CUDA counts the visible GPUs
  bool graphs = true;  // whether decode steps are recorded and repeated; the bits are the same
};

// unsupported: no GPU, one that is not sm_90, or a library that the contract was not measured with;
// the sentence says which, and what to do.
Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options = {});

}  // namespace exact
