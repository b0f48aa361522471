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
  // warp: mma.sync, 16 rows of the weights a warp, x beside the weights in one ring of stages.
  // warpgroup: wgmma, all rows of a block at once, rings of their own for weights and x, and x
  // shared in a cluster.
  enum class Form : uint8_t { warp, warpgroup };

  Form form = Form::warp;
  int64_t out_features = 0;  // N
  int64_t in_features = 0;   // K
  int tokens = 0;            // rows of x
  int token_tiles = 0;       // of 8 tokens in shared memory; warp: 1, 2, 4 or 8
  int rows = 0;              // of the weights that a block takes at a time
  int stage_blocks = 0;      // blocks of 64 k in a stage of the ring of weights
  int stages = 0;
  int x_stage_blocks = 0;  // warpgroup: of the ring of x
  int x_stages = 0;
  int cluster = 1;     // warpgroup: blocks that share their copies of x
  int begin_next = 0;  // the copied stage of weights at which the next kernel may begin; 0: at once
  int blocks = 0;      // of the grid
  int shared_bytes = 0;

  // Sets blocks and shared_bytes from the rest.
  void size_for(int multiprocessors);
  std::string to_string() const;
};

// Shapes: tokens 1 to 64, N a multiple of 8, K of 64. unsupported: names the dimension.
Result<DecodeMatmulPlan> plan_decode_matmul(int tokens, int64_t out_features, int64_t in_features,
                                            int multiprocessors);

// Whether it is the one to take among the kernels of matmul.h: up to 32 rows, and up to 64 where
// there are more weights than 2^24; of fewer the library is done sooner (docs/performance.md).
bool prefers_decode_matmul(int64_t tokens, int64_t out_features, int64_t in_features);

// out[t, n] = bf16(chain(x[t, :], weight[n, :]) + bias[n])
// weight (N, K) contiguous, x (tokens, K) with x_stride elements from row to row, bias (N) or null,
// out (tokens, N) with out_stride: bf16 device memory, rows contiguous; weight and x aligned to 16
// bytes, out to 4, x_stride and out_stride multiples of 8. The weights are read before the kernels
// launched earlier on the stream are done, so none of those may write them.
// invalid: a stride. device: what CUDA refused.
Status launch_decode_matmul(const DecodeMatmulPlan& plan, const uint16_t* weight, const uint16_t* x,
                            int64_t x_stride, const uint16_t* bias, uint16_t* out,
                            int64_t out_stride, cudaStream_t stream);

}  // namespace exact::cuda
