// special_unit.h owns ex2.approx.ftz.f32 and rsqrt.approx.ftz.f32 of Hopper, as integer models that
// agree with the hardware on each of the 2^32 inputs. On a device they are the hardware.
//
// The fraction falls into a segment (top bits) and x (low 17 bits); the result's 24-bit significand
// is a parabola in x, whose square is truncated inside the squarer.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/float_ops.h"
#include "kernels/contract/special_tables.h"

namespace exact::contract {

// floor(x^2 / 2^19) of a 17-bit x = high * 512 + low, of the partial products in columns >= 18
// alone: high^2 is whole, low^2 is lost, and of the cross products some columns stay.
EXACT_HD uint32_t truncated_square(uint32_t x) {
  const uint32_t high = x >> 9;
  const uint32_t low = x & 511u;
  uint32_t sum = high * high >> 1;
  sum += (0u - (high >> 1 & 1u)) & low >> 8;
  sum += (0u - (high >> 2 & 1u)) & low >> 7;
  sum += (0u - (high >> 3 & 1u)) & low >> 6;
  sum += (0u - (high >> 4 & 1u)) & low >> 5;
  sum += (0u - (high >> 5 & 1u)) & low >> 4;
  sum += (0u - (high >> 6 & 1u)) & low >> 3;
  sum += (0u - (high >> 7 & 1u)) & low >> 2;
  return sum;
}

#if !defined(__CUDA_ARCH__)

// A 23-bit fraction f -> the significand of 2^(f / 2^23), in [2^23, 2^24):
// (C0 * 2^13 + C1 * x + C2 * square + 0x17e2) >> 15, split at 2^8 so that 32 bits suffice.
EXACT_HD uint32_t ex2_significand(uint32_t fraction) {
  const uint32_t segment = fraction >> 17;
  const uint32_t x = fraction & 0x1ffffu;
  const uint32_t linear = kEx2C12[segment] & 0xffffu;
  const uint32_t quadratic = kEx2C12[segment] >> 16;
  const uint32_t high = (kEx2C0[segment] << 5) + linear * (x >> 8);
  const uint32_t low = linear * (x & 255u) + quadratic * truncated_square(x) + 0x17e2u;
  return (high + (low >> 8)) >> 7;
}

// 24 bits (1 for an odd exponent, then the fraction) -> a significand of a result in (1/2, 1):
// (C0 * 2^14 - C1 * x + 4 * C2 * square + 0x3fff) >> 16.
EXACT_HD uint32_t rsqrt_significand(uint32_t fraction) {
  const uint32_t segment = fraction >> 17;
  const uint32_t x = fraction & 0x1ffffu;
  const uint32_t linear = kRsqrtC12[segment] & 0xffffu;
  const uint32_t quadratic = kRsqrtC12[segment] >> 16;
  const uint32_t high = (kRsqrtC0[segment] << 6) - linear * (x >> 8);
  const int32_t low =
      static_cast<int32_t>(quadratic * truncated_square(x) * 4 + 0x3fffu - linear * (x & 255u));
  return (high + static_cast<uint32_t>(low >> 8)) >> 8;
}

#endif

// ex2.approx.ftz.f32: 2^x. Subnormal results are +0.
EXACT_HD float ex2(float value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value);
  const uint32_t field = bits >> 23 & 255u;
  const uint32_t negative = bits >> 31;
  // |value| truncated to 7.23 fixed point; |value| >= 128 is replaced at the end.
  uint32_t right = 133u - field;
  right = static_cast<int32_t>(right) < 0 ? 0u : right;
  right = right > 31u ? 31u : right;
  const uint32_t fixed = (((bits & 0x7fffffu) | 0x800000u) << 6) >> right;
  // A negative value's fraction is complemented, not negated, when it is not zero.
  const uint32_t minus = select_bits((fixed & 0x7fffffu) != 0, ~fixed, 0u - fixed);
  const uint32_t folded = select_bits(negative != 0, minus, fixed);
  const int32_t exponent = static_cast<int32_t>(folded) >> 23;
  uint32_t result =
      (static_cast<uint32_t>(exponent + 126) << 23) + ex2_significand(folded & 0x7fffffu);
  result = select_bits(exponent < -126, 0u, result);
  const uint32_t far = select_bits(is_nan_bits(bits), 0x7fffffffu, (negative - 1u) & 0x7f800000u);
  return float_from_bits(select_bits(field >= 134u, far, result));
#endif
}

// rsqrt.approx.ftz.f32. Zeros and subnormals give infinities, negatives NaN.
EXACT_HD float rsqrt(float value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#else
  const uint32_t bits = float_bits(value);
  const uint32_t field = bits >> 23 & 255u;
  const uint32_t negative = bits >> 31;
  const uint32_t fraction = (bits & 0x7fffffu) | ((field & 1u) ^ 1u) << 23;
  const uint32_t significand =
      select_bits(fraction == 0, 0x1000000u, rsqrt_significand(fraction));  // 4^k: exact
  uint32_t result = ((189u - ((field + 1u) >> 1)) << 23) + significand;
  result = select_bits((bits & 0x7fffffffu) == 0x7f800000u, 0u, result);
  result = select_bits(negative != 0, 0x7fffffffu, result);
  result = select_bits(field == 0, negative << 31 | 0x7f800000u, result);
  return float_from_bits(select_bits(is_nan_bits(bits), 0x7fffffffu, result));
#endif
}

}  // namespace exact::contract
