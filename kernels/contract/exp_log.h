// exp_log.h owns CUDA's expf and logf as nvcc builds them by default (no fast-math, no ftz), read
// from its PTX. Branch-free: a loop over them vectorises.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/float_ops.h"
#include "kernels/contract/special_unit.h"

namespace exact::contract {

// CUDA expf: 2^n * ex2(x * log2(e) - n), with
//   t = fma.rn.sat(x, log2(e) / 252, 0.5);  n = floor(252 t) - 126     (PTX: a round-down fma)
//   r = fma(x, log2(e) high, -n);  r = fma(x, log2(e) low, r)
EXACT_HD float exp(float x) {
  // The saturation to [0, 1] works on the bits: a NaN's result is replaced at the end.
  int32_t clamped = static_cast<int32_t>(float_bits(fma_rn(x, 0x1.77313ap-8f, 0.5f)));
  clamped = clamped < 0 ? 0 : clamped;
  clamped = clamped > 0x3f800000 ? 0x3f800000 : clamped;
  const float t = float_from_bits(static_cast<uint32_t>(clamped));
  // floor(252 t) exactly: the rounded product may be one too large, and the fma's sign tells.
  int32_t n = static_cast<int32_t>(t * 252.0f);
  n -= static_cast<int32_t>(float_bits(fma_rn(t, 252.0f, -static_cast<float>(n))) >> 31);
  float r = fma_rn(x, 0x1.715476p+0f, static_cast<float>(126 - n));
  r = fma_rn(x, 0x1.4ae0cp-26f, r);
  const float y = float_from_bits(static_cast<uint32_t>(n + 1) << 23) * ex2(r);
  return float_from_bits(select_bits(is_nan_bits(float_bits(x)), 0x7fffffffu, float_bits(y)));
}

// CUDA logf: e * ln 2 + the polynomial of m - 1, with m in [2/3, 4/3).
EXACT_HD float log(float value) {
  const bool small = value < 0x1p-126f;  // a subnormal is lifted; negatives are replaced below
  const float a = small ? value * 0x1p23f : value;
  const uint32_t bits = float_bits(a);
  const uint32_t exponent_bits = (bits - 0x3f2aaaabu) & 0xff800000u;
  const float m = float_from_bits(bits - exponent_bits) + -1.0f;
  const float e = fma_rn(static_cast<float>(static_cast<int32_t>(exponent_bits)), 0x1p-23f,
                         small ? -23.0f : 0.0f);
  float r = float_from_bits(0xbe055027u);
  r = fma_rn(r, m, float_from_bits(0x3e1039f6u));
  r = fma_rn(r, m, float_from_bits(0xbdf8cdccu));
  r = fma_rn(r, m, float_from_bits(0x3e0f2955u));
  r = fma_rn(r, m, float_from_bits(0xbe2ad8b9u));
  r = fma_rn(r, m, float_from_bits(0x3e4ced0bu));
  r = fma_rn(r, m, float_from_bits(0xbe7fff22u));
  r = fma_rn(r, m, float_from_bits(0x3eaaaa78u));
  r = fma_rn(r, m, float_from_bits(0xbf000000u));
  r = m * r;
  r = fma_rn(r, m, m);
  uint32_t result = float_bits(fma_rn(e, float_from_bits(0x3f317218u), r));
  // +inf stays; NaN and negatives become NaN; either zero gives -inf.
  result =
      select_bits(bits >= 0x7f800000u, select_bits(bits == 0x7f800000u, bits, 0x7fffffffu), result);
  return float_from_bits(select_bits((bits & 0x7fffffffu) == 0, 0xff800000u, result));
}

}  // namespace exact::contract
