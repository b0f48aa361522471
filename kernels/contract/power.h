// power.h owns CUDA's powf as nvcc builds it by default, for positive finite bases and ordinary
// exponents: what rotary frequencies ask for. It is not correctly rounded, and a correctly rounded
// power would give other frequencies.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/float_ops.h"
#include "kernels/contract/reciprocal.h"

namespace exact::contract {

// log2 of a as an unevaluated sum of two floats.
struct SplitLog2 {
  float high;
  float low;
};

EXACT_HD SplitLog2 split_log2(float a) {
  const uint32_t bits = float_bits(a);
  const uint32_t exponent_bits = (bits - 0x3f3504f3u) & 0xff800000u;
  const float m = float_from_bits(bits - exponent_bits);
  const float e = static_cast<float>(static_cast<int32_t>(exponent_bits)) * 0x1p-23f;
  const float f = m + -1.0f;
  const float reciprocal = rcp(m + 1.0f);  // the hardware's: 1 in 8 is not the rounded quotient
  const float t = (f + f) * reciprocal;
  const float t2 = t * t;
  float residue = f - t;
  residue = residue + residue;
  residue = fma_rn(-t, f, residue);
  const float error = reciprocal * residue;
  float p = fma_rn(float_from_bits(0x3a2c32e4u), t2, float_from_bits(0x3b52e7dbu));
  p = fma_rn(p, t2, float_from_bits(0x3c93bb73u));
  p = fma_rn(p, t2, float_from_bits(0x3df6384fu));
  p = p * t2;
  const float log2_e = float_from_bits(0x3fb8aa3bu);
  const float high = fma_rn(t, log2_e, e);
  float low = e - high;
  low = fma_rn(t, log2_e, low);
  low = fma_rn(error, log2_e, low);
  low = fma_rn(t, float_from_bits(0x32a55e34u), low);
  low = fma_rn(p * 3.0f, error, low);
  low = fma_rn(p, t, low);
  const float sum = high + low;
  return {sum, low + -(sum + -high)};
}

// 2^(integer + rest), |rest| <= 1/2: the scale is applied in two exact halves.
EXACT_HD float scaled_ex2_polynomial(float integer, float rest) {
  float z = float_from_bits(0x391fcb8eu);
  z = fma_rn(z, rest, float_from_bits(0x3aaf85edu));
  z = fma_rn(z, rest, float_from_bits(0x3c1d9856u));
  z = fma_rn(z, rest, float_from_bits(0x3d6357bbu));
  z = fma_rn(z, rest, float_from_bits(0x3e75fdecu));
  z = fma_rn(z, rest, float_from_bits(0x3f317218u));
  z = fma_rn(z, rest, 1.0f);
  const uint32_t part = integer > 0.0f ? 0u : 0x83000000u;
  const uint32_t exponent = static_cast<uint32_t>(static_cast<int32_t>(integer)) << 23;
  return z * float_from_bits(part + 0x7f000000u) * float_from_bits(exponent - part);
}

// a > 0 and finite, b finite.
EXACT_HD float pow(float a, float b) {
  if (b == 0.0f || a == 1.0f) return 1.0f;
  const SplitLog2 log2_a = split_log2(a);
  const float x = log2_a.high * b;
  if (x > 152.0f) return float_from_bits(0x7f800000u);
  if (x < -152.0f) return 0.0f;
  float error = fma_rn(log2_a.high, b, -x);
  error = fma_rn(log2_a.low, b, error);
  const float integer = __builtin_rintf(x);
  return scaled_ex2_polynomial(integer, error + (x - integer));
}

}  // namespace exact::contract
