// make_backend.h chooses a backend by name. All give the same bits; the choice is of speed.
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"

namespace exact {

struct BackendOptions {
  std::string kind = "auto";  // "cpu", "cuda", or "auto": cuda where there is a Hopper GPU
  CpuOptions cpu;
  CudaOptions cuda;
};

// invalid: another kind. unsupported: the sentence says what is missing, also when this build has
// no CUDA parts.
Result<std::unique_ptr<Backend>> make_backend(const BackendOptions& options);

}  // namespace exact
