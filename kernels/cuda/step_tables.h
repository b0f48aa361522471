// step_tables.h owns the tables of a step on the GPU: made on the host, copied in one piece. The
// addresses of a decode step depend on its padded rows alone, so its record can be repeated.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device_step.h"
#include "kernels/cuda/memory.h"

namespace exact::cuda {

// Rows that a decode step of so many sequences has with its padding: few sizes, so that few records
// serve; and how long the longest context is taken for.
int64_t padded_decode_rows(int64_t rows);
int32_t padded_context(int32_t positions);
// Beyond so many rows, steps are neither padded nor recorded.
inline constexpr int64_t kMaxRecordedRows = 256;

class StepTables {
 public:
  // Copies the tables of `step` to the GPU. Spans are not kept.
  Status set(const StepRows& step, cudaStream_t stream);

  const DeviceStep& device() const { return device_; }
  bool decode_only() const { return decode_only_; }
  // Changes when the tables move: records of before are void.
  uint64_t generation() const { return generation_; }

 private:
  void sort_sequences(const StepRows& step);
  Status reserve(size_t words, cudaStream_t stream);

  DeviceStep device_;
  bool decode_only_ = false;
  uint64_t generation_ = 0;
  Buffer device_words_, pinned_words_;
  Buffer copied_;  // a cudaEvent_t: the last copy has read the pinned words
  std::vector<const SequenceChunk*> order_;  // decodes first
  std::vector<QueryTile> tiles_;
};

}  // namespace exact::cuda
