// launch.cuh owns how a step's kernels are launched: each may begin while the one before ends
// (programmatic dependent launch), so each waits for it (sm90.cuh) before it reads or writes.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <type_traits>

#include "kernels/base/result.h"

namespace exact::cuda {

struct LaunchShape {
  int64_t blocks = 0;  // 0: nothing to do, nothing is launched
  int threads = 0;
  int shared_bytes = 0;  // dynamic
  int cluster = 1;       // blocks that share their shared memory; divides `blocks`
};

// `name`: the operation, for the error's sentence.
template <class... Parameters>
Status launch_overlapped(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
                         cudaStream_t stream, std::type_identity_t<Parameters>... arguments) {
  if (shape.blocks == 0) return {};
  constexpr int kSharedWithoutAsking = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (shape.shared_bytes > kSharedWithoutAsking) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 shape.shared_bytes);
  }
  if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = shape.cluster > 1 ? 2 : 1;
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  if (error == cudaSuccess) return {};
  return Status(Code::device, std::string(name) + ": " + std::to_string(shape.blocks) +
                                  " blocks of " + std::to_string(shape.threads) +
                                  " threads were refused: " + cudaGetErrorString(error));
}

}  // namespace exact::cuda
