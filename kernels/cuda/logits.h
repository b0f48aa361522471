// logits.h owns the launches of rules N7, N8 and N9 on a GPU: log-probabilities and draws, without
// moving logits to the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/backend.h"

namespace exact::cuda {

// out[i] = log_softmax(logits[i].float())[targets[i]]; NaN for a row with a NaN or an infinity.
// logits (rows, V) bf16, contiguous, aligned to 16 bytes; targets, out: device memory.
Status launch_target_logprobs(const uint16_t* logits, int64_t rows, int64_t vocabulary,
                              const int32_t* targets, float* out, cudaStream_t stream);

// Draws a token for each SampleRow (device memory; its `row` is an index into logits). Outcomes in
// device memory. filters: whether any row has top-k, top-p or min-p.
Status launch_sample(const uint16_t* logits, int64_t vocabulary, const SampleRow* rows,
                     int64_t count, bool filters, SampleOutcome* outcomes, cudaStream_t stream);

}  // namespace exact::cuda
