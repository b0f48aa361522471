// linear.h owns rule N1 for whole matrices: the layout of packed weights and the loop over panels.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/context.h"

namespace exact::cpu {

// Packed weights: bf16 panels [ceil(N / 32)][K rounded up to 16][32], where column j of panel p is
// row 32 p + j of the matrix and what lies beyond N or K is zero; then, a byte for each step of
// each panel, whether it holds a value that is not tame (chain.h).
size_t packed_bytes(int64_t out_features, int64_t in_features);
// Packs rows of the matrix from first_row on; the others stay as they are.
void pack_weight(CpuContext& context, const TensorView& weight, int64_t first_row,
                 LinearWeight& out);
// Gives rows of the matrix from first_row on back, as they were packed.
void unpack_weight(CpuContext& context, const LinearWeight& weight, int64_t first_row,
                   const TensorView& out);

// out = x weight^T + bias; bias may be null.
Status linear(CpuContext& context, const TensorView& x, const LinearWeight& weight,
              const uint16_t* bias, const TensorView& out);

}  // namespace exact::cpu
