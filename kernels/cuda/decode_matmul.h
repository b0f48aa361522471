// decode_matmul.h owns the linear layer of a decode step on sm_90: few rows of x, all of the
// weights streamed once. One ascending chain an output (rule N1); K is never split.
//
// A decision is a value: plan_decode_matmul says what will run, launch_decode_matmul runs it. A
// plan can't change bits, only speed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "kernels/base/result.h"

namespace exact::cuda {

inline constexpr int kMaxDecodeTokens = 64;

struct DecodeMatmulPlan {
  int64_t out_features = 0;  // N
  int64_t in_features = 0;   // K
  int tokens = 0;            // rows of x
  int token_tiles = 0;       // of 8 tokens: 1, 2, 4 or 8
  int warps = 0;             // that multiply; each has 16 rows of the weights
  int stage_blocks = 0;      // blocks of 64 k in a stage of the ring
  int stages = 0;
  int blocks = 0;  // of the grid
  int shared_bytes = 0;
  std::string to_string() const;
};

// Shapes: tokens 1 to 64, N a multiple of 8, K of 64. unsupported: names the dimension.
Result<DecodeMatmulPlan> plan_decode_matmul(int tokens, int64_t out_features, int64_t in_features,
                                            int multiprocessors);

// out[t, n] = bf16(chain(x[t, :], weight[n, :]) + bias[n])
// weight (N, K), x (tokens, K), bias (N) or null, out (tokens, N): bf16, row-major, contiguous
// device memory; weight and x aligned to 16 bytes. The weights are read before the kernels launched
// earlier on the stream are done, so none of those may write them. device: what CUDA refused.
Status launch_decode_matmul(const DecodeMatmulPlan& plan, const uint16_t* weight, const uint16_t* x,
                            const uint16_t* bias, uint16_t* out, cudaStream_t stream);

}  // namespace exact::cuda
