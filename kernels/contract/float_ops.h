// float_ops.h owns the fp32 operations that the rules name: a fused multiply-add, a selection
// without a branch, and CUDA's NaN.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"

namespace exact::contract {

// One rounding. Without an FMA unit the host calls libm: slower, the same bits.
EXACT_HD float fma_rn(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// condition ? yes : no, as a mask: loops over it vectorise.
EXACT_HD uint32_t select_bits(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

EXACT_HD bool is_nan_bits(uint32_t bits) {
  return (bits & 0x7fffffffu) > 0x7f800000u;
}

// Every NaN that Hopper's arithmetic makes is 0x7fffffff; x86 makes others.
EXACT_HD float canonical_nan(float value) {
  const uint32_t bits = float_bits(value);
  return float_from_bits(select_bits(is_nan_bits(bits), 0x7fffffffu, bits));
}

}  // namespace exact::contract
