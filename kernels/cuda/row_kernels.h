// row_kernels.h owns the launches of the operations on rows: rules N2, N3, N4, N6 and copies.
// Tensors are bf16; widths in elements; a stride is elements from one row to the next. Rows start
// at multiples of 16 bytes and widths are multiples of 8. Every kernel is launched so that it may
// begin while the one before ends (programmatic dependent launch), and waits for it before reading.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/device_step.h"
#include "kernels/cuda/kv_layout.h"

namespace exact::cuda {

struct Rows {
  uint16_t* data = nullptr;
  int64_t stride = 0;
};
struct ConstRows {
  const uint16_t* data = nullptr;
  int64_t stride = 0;
};

// out[t, :] = table[ids[t], :]
Status launch_embed(const int32_t* ids, const uint16_t* table, Rows out, int64_t rows,
                    int64_t width, cudaStream_t stream);
// out[i, :] = x[rows[i], :]
Status launch_gather_rows(const int32_t* rows, ConstRows x, Rows out, int64_t count, int64_t width,
                          cudaStream_t stream);
// Rules N2, N3: out = norm(x) * weight.
Status launch_rms_norm(ConstRows x, const uint16_t* weight, float epsilon, NormForm form, Rows out,
                       int64_t rows, int64_t width, cudaStream_t stream);
// Rules N6, N2: x += y, then out = norm(x) * weight, in one pass.
Status launch_add_rms_norm(Rows x, ConstRows y, const uint16_t* weight, float epsilon,
                           NormForm form, Rows out, int64_t rows, int64_t width,
                           cudaStream_t stream);
// Rule N6: x += y.
Status launch_add(Rows x, ConstRows y, int64_t rows, int64_t width, cudaStream_t stream);
// Rule N6: out = bf16(silu(gate)) * up.
Status launch_silu_mul(ConstRows gate, ConstRows up, Rows out, int64_t rows, int64_t width,
                       cudaStream_t stream);

// Rules N2, N4 on heads of E columns, in place; head_norm (E) or null normalises each head first.
// cos_sin: a row a position, E cosines, then E sines.
struct RopeInputs {
  const uint16_t* cos_sin = nullptr;
  const uint16_t* query_norm = nullptr;
  const uint16_t* key_norm = nullptr;
  float epsilon = 0;
  NormForm form = NormForm::hf;
};
Status launch_rope(Rows x, int32_t heads, int32_t head_width, const RopeInputs& rope,
                   const uint16_t* head_norm, const DeviceStep& step, cudaStream_t stream);
// Writes the keys and values of every row into its page; padding rows are skipped.
Status launch_store_kv(ConstRows keys, ConstRows values, const LayerPages& pages,
                       const DeviceStep& step, cudaStream_t stream);
// All three in one: query is rotated in place; keys are rotated on their way into the pages (`keys`
// itself may keep its old values); values are stored.
Status launch_rope_store_kv(Rows query, int32_t query_heads, Rows keys, ConstRows values,
                            const RopeInputs& rope, const LayerPages& pages, const DeviceStep& step,
                            cudaStream_t stream);

}  // namespace exact::cuda
