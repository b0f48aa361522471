// decode_matmul_launch.cuh owns what the forms of decode_matmul share: how a matrix becomes a
// tensor map, how a kernel is launched over the one before it, and the end of a chain.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "kernels/base/bf16.h"
#include "kernels/cuda/decode_matmul.h"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {

inline constexpr int kBlockK = 64;  // k in a block: 128 bytes, one row of the swizzle
inline constexpr int kRowBytes = kBlockK * 2;
inline constexpr int kBarrierBytes = 1024;  // before the stages, which are aligned to it

// What a launch computes, beside its plan.
struct DecodeMatmulOperands {
  const uint16_t* weight;
  const uint16_t* x;
  int64_t x_stride;
  const uint16_t* bias;  // or null
  uint16_t* out;
  int64_t out_stride;
};

Status launch_warp_form(const DecodeMatmulPlan& plan, const DecodeMatmulOperands& operands,
                        cudaStream_t stream);
Status launch_warpgroup_form(const DecodeMatmulPlan& plan, const DecodeMatmulOperands& operands,
                             cudaStream_t stream);

// A (rows, K) matrix, `stride` elements from row to row, as boxes of `blocks` blocks of 64 k by
// `box_rows` rows, each block 128 bytes a row and swizzled; what lies outside reads as zero.
Result<CUtensorMap> matrix_map(const uint16_t* data, int64_t rows, int64_t k, int64_t stride,
                               int box_rows, int blocks);

// Launches so that the kernel's start lies over the end of the one before it.
template <class... Parameters, class... Arguments>
Status launch_overlapping(const DecodeMatmulPlan& plan, int threads, cudaStream_t stream,
                          void (*kernel)(Parameters...), const Arguments&... arguments) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
  if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {static_cast<unsigned>(plan.cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = plan.cluster > 1 ? 2 : 1;
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  if (error == cudaSuccess) return {};
  return Status(Code::device, plan.to_string() + ": " + cudaGetErrorString(error));
}

// A ring of stages in shared memory, and whose turn it is.
struct StageRing {
  uint32_t full, empty, data;  // shared addresses: barriers, then the stages
  int stage_bytes, stages;
  int stage = 0;
  uint32_t parity = 0;

  __device__ uint32_t full_barrier() const { return full + 8u * static_cast<uint32_t>(stage); }
  __device__ uint32_t empty_barrier() const { return empty + 8u * static_cast<uint32_t>(stage); }
  __device__ uint32_t base() const { return data + static_cast<uint32_t>(stage * stage_bytes); }
  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1u;
    }
  }
};

}  // namespace exact::cuda
