// logits_plan.h owns how the rows of logits.h are spread over a GPU: how many blocks, a cluster,
// share a row. No plan changes a bit; the launches of logits.h choose one by the shape.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/backend.h"

namespace exact::cuda {

inline constexpr int64_t kOneWarpVocabulary = 2048;  // up to here one warp sums a row
inline constexpr int kMaxSharedBytes = 227 * 1024;   // of a block

struct LogitsPlan {
  int64_t vocabulary = 0;  // V
  int64_t count = 0;       // rows
  int cluster = 1;         // blocks a row: 1, 2, 4 or 8; 1 where one warp sums a row
  bool in_shared = false;  // a block keeps its part of the row; else it reads it from L2 each time
  int shared_bytes = 0;    // of a block
};

// cluster 0: chosen. unsupported: a vocabulary outside the contract.
Result<LogitsPlan> plan_target_logprobs(int64_t vocabulary, int64_t rows, int cluster = 0);
Result<LogitsPlan> plan_sample(int64_t vocabulary, int64_t rows, bool filters, int cluster = 0);

// Shared memory of a block for its part of a row.
int row_part_bytes(int64_t vocabulary, int cluster);

Status launch_target_logprobs(const LogitsPlan& plan, const uint16_t* logits,
                              const int32_t* targets, float* out, cudaStream_t stream);
Status launch_sample(const LogitsPlan& plan, const uint16_t* logits, const SampleRow* rows,
                     bool filters, SampleOutcome* outcomes, cudaStream_t stream);

}  // namespace exact::cuda
