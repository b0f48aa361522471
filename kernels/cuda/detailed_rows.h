// detailed_rows.h owns the way of SampleDetails to a GPU and of their reports back: edits and masks
// go over in one copy each, outcomes and kept sets are unpacked when the stream has been waited
// for.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "kernels/backend.h"
#include "kernels/cuda/memory.h"

namespace exact::cuda {

// A row to draw from and where its outcome goes; both live until the arena collects.
struct RowToDraw {
  const SampleRow* row;
  SampleOutcome* outcome;
};

class DetailedRows {
 public:
  // Each row has a detail. logits (rows, V) bf16, contiguous, device memory.
  Status sample(const uint16_t* logits, int64_t vocabulary, std::span<const RowToDraw> rows,
                TransferArena& arena, cudaStream_t stream);

 private:
  Status reserve_scratch(size_t bytes, cudaStream_t stream);

  Buffer scratch_;
};

}  // namespace exact::cuda
