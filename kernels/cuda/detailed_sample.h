// detailed_sample.h owns the draw of rows with a SampleDetail on a GPU: penalties, biases, masks,
// forced tokens and reports (rule N9). The rows of logits are not written and may be shared.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/contract/logit_edits.h"

namespace exact::cuda {

// One row, with pointers to device memory. sample.detail is not read.
struct DetailedRow {
  SampleRow sample;
  contract::Penalties penalties;
  const LogitEdit* edits = nullptr;
  int32_t edit_count = 0;
  const uint32_t* allowed = nullptr;  // null: all
  int32_t forced_token = -1;
  int32_t top_count = 0;  // K
  bool wants_entropy = false;
  uint32_t* kept = nullptr;  // mask_words(V), written whole; null: not wanted
};

struct DetailedOutcome {
  SampleOutcome outcome;
  float entropy;                               // where it is wanted
  int32_t top_ids[contract::kMaxTopLogprobs];  // K of them
  float top_logprobs[contract::kMaxTopLogprobs];
};

// Bytes that a launch of so many rows works in.
size_t detailed_sample_scratch(int64_t vocabulary, int64_t count);

// rows, outcomes (count) and scratch: device memory. Logits as for launch_sample.
Status launch_detailed_sample(const uint16_t* logits, int64_t vocabulary, const DetailedRow* rows,
                              int64_t count, void* scratch, DetailedOutcome* outcomes,
                              cudaStream_t stream);

}  // namespace exact::cuda
