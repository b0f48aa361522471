// attention.h owns the launches of rule N5 on a GPU: one kernel for prefill, one for decoding, and
// the plain one that shows that they agree. A choice between them can't change bits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/result.h"
#include "kernels/cuda/device_step.h"
#include "kernels/cuda/kv_layout.h"

namespace exact::cuda {

// query, out: bf16 rows of query_heads * E elements, `query_stride` and `out_stride` elements from
// one row to the next, both multiples of 8, aligned to 16 bytes. Padding rows of `out` are written
// with zeros by none: they stay as they are.
struct AttentionInputs {
  const uint16_t* query = nullptr;
  int64_t query_stride = 0;
  uint16_t* out = nullptr;
  int64_t out_stride = 0;
  int32_t query_heads = 0;
  LayerPages pages;
  DeviceStep step;
};

// The sequences of one row: step.sequences[0, step.decode_sequences). Widths 32, 64, 80, 96, 128.
// `form` 0 chooses by the shape of the step; each other form must give the same bits:
// 1: one block a (sequence, kv head); 2: three kernels, for few and long sequences.
// scratch: decode_attention_scratch() bytes of device memory, for form 2 and 0.
enum class DecodeAttentionForm : uint8_t { automatic = 0, streamed = 1, spread = 2 };
size_t decode_attention_scratch(int32_t sequences, int32_t query_heads, int32_t max_context);
Status launch_decode_attention(const AttentionInputs& inputs, DecodeAttentionForm form,
                               int multiprocessors, void* scratch, size_t scratch_bytes,
                               cudaStream_t stream);

// The other sequences: step.tiles[0, step.query_tiles). Widths 64 and 128.
bool prefill_attention_covers(int32_t head_width);
Status launch_prefill_attention(const AttentionInputs& inputs, int multiprocessors,
                                cudaStream_t stream);

// Every row of every sequence, every head width of the contract; slow.
Status launch_plain_attention(const AttentionInputs& inputs, cudaStream_t stream);

}  // namespace exact::cuda
