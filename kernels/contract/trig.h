// trig.h owns CUDA's sinf and cosf as nvcc builds them by default, read from its PTX.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/float_ops.h"

namespace exact::contract {

// x = quadrant * pi/2 + rest; the quadrant counts modulo 4.
struct ReducedAngle {
  int32_t quadrant;
  float rest;
};

// Three fused subtractions of j * pi/2: |x| < 105615.
EXACT_HD ReducedAngle reduce_small_angle(float x) {
  const int32_t quadrant = static_cast<int32_t>(__builtin_rintf(x * float_from_bits(0x3f22f983u)));
  const float j = static_cast<float>(quadrant);  // by way of an integer: never -0
  float rest = fma_rn(j, float_from_bits(0xbfc90fdau), x);
  rest = fma_rn(j, float_from_bits(0xb3a22168u), rest);
  rest = fma_rn(j, float_from_bits(0xa7c234c5u), rest);
  return {quadrant, rest};
}

// Payne and Hanek: the significand times 192 bits of 2/pi, the wanted 64 bits of which are turned
// to a double.
EXACT_HD ReducedAngle reduce_large_angle(float x) {
  constexpr uint32_t two_over_pi[6] = {0x3c439041u, 0xdb629599u, 0xf534ddc0u,
                                       0xfc2757d1u, 0x4e441529u, 0xa2f9836eu};
  const uint32_t bits = float_bits(x);
  const uint32_t significand = bits << 8 | 0x80000000u;
  const int exponent = static_cast<int>(bits >> 23 & 255u) - 128;
  uint32_t product[7];
  uint64_t carry = 0;
  for (int i = 0; i < 6; i++) {
    const uint64_t sum = static_cast<uint64_t>(two_over_pi[i]) * significand + carry;
    product[i] = static_cast<uint32_t>(sum);
    carry = sum >> 32;
  }
  product[6] = static_cast<uint32_t>(carry);
  const int word = 4 - (exponent >> 5);
  const int left = exponent & 31;
  uint32_t high = product[word + 2];
  uint32_t low = product[word + 1];
  if (left != 0) {
    high = (high << left) + (low >> (32 - left));
    low = (low << left) + (product[word] >> (32 - left));
  }
  uint32_t fraction = high << 2 | low >> 30;
  uint32_t fraction_low = low << 2;
  const uint32_t half = fraction >> 31;  // beyond pi/4: the next quadrant, and a negative rest
  int32_t quadrant = static_cast<int32_t>(half + (high >> 30));
  uint32_t sign = bits & 0x80000000u;
  if (sign != 0) quadrant = -quadrant;
  if (half != 0) {
    fraction = ~fraction;
    fraction_low = ~fraction_low;
    sign ^= 0x80000000u;
  }
  const int64_t fixed = static_cast<int64_t>(static_cast<uint64_t>(fraction) << 32 | fraction_low);
  const float rest = static_cast<float>(static_cast<double>(fixed) * 0x1.921fb54442d19p-64);
  return {quadrant, sign != 0 ? -rest : rest};
}

EXACT_HD ReducedAngle reduce_angle(float x) {
  const uint32_t magnitude = float_bits(x) & 0x7fffffffu;
  if (magnitude < 0x47ce4780u) return reduce_small_angle(x);
  if (magnitude >= 0x7f800000u) return {0, float_from_bits(0x7fffffffu)};  // x * 0
  return reduce_large_angle(x);
}

// The sine of rest + quadrant * pi/2.
EXACT_HD float sine_of_quadrant(int32_t quadrant, float rest) {
  const float z = rest * rest;
  const bool odd = (quadrant & 1) != 0;  // a cosine
  const float base = odd ? 1.0f : rest;
  float r = odd ? fma_rn(float_from_bits(0x37cbac00u), z, float_from_bits(0xbab607edu))
                : float_from_bits(0xb94d4153u);
  r = fma_rn(r, z, float_from_bits(odd ? 0x3d2aaabbu : 0x3c0885e4u));
  r = fma_rn(r, z, float_from_bits(odd ? 0xbeffffffu : 0xbe2aaaa8u));
  r = fma_rn(r, fma_rn(z, base, 0.0f), base);
  return (quadrant & 2) != 0 ? fma_rn(r, -1.0f, 0.0f) : r;
}

EXACT_HD float sin(float x) {
  const ReducedAngle angle = reduce_angle(x);
  return canonical_nan(sine_of_quadrant(angle.quadrant, angle.rest));
}

EXACT_HD float cos(float x) {
  const ReducedAngle angle = reduce_angle(x);
  return canonical_nan(sine_of_quadrant(angle.quadrant + 1, angle.rest));
}

}  // namespace exact::contract
