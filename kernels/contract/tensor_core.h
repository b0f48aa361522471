// tensor_core.h owns rule N1: one k16 step of Hopper's tensor core on bf16 with an fp32
// accumulator, and the ascending chain of steps that every linear layer and both products of
// attention are. The model is MMA-Sim's (arXiv 2511.10909).
//
//   step    d = RZ32( sum_{i < 16} T(a_i b_i) + T(c) )
//   terms   exact significand; exponent e_a + e_b, not renormalised (the accumulator's own for c);
//           a zero counts as exponent -126, a product of zeros as -126 plus the other's
//   T(x)    truncates x towards zero to a multiple of 2^(e_max - 25), e_max the largest of the 17
//   result  the exact sum truncated to fp32, subnormals kept; a zero is +0, a NaN is 0x7fffffff
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"

namespace exact::contract {

inline constexpr int kStepWidth = 16;        // products in one step
inline constexpr int kSumFractionBits = 25;  // bits kept below e_max
inline constexpr int kZeroExponent = -126;
inline constexpr uint32_t kCanonicalNan = 0x7fffffffu;

// One finite number: significand * 2^(exponent - fraction bits).
struct TensorCoreTerm {
  int64_t significand;
  int exponent;
};

EXACT_HD TensorCoreTerm product_term(uint16_t a, uint16_t b) {
  const int a_field = a >> 7 & 255;
  const int b_field = b >> 7 & 255;
  const int64_t a_significand = (a & 127) | (a_field != 0 ? 128 : 0);
  const int64_t b_significand = (b & 127) | (b_field != 0 ? 128 : 0);
  const int64_t product = a_significand * b_significand;
  return {((a ^ b) & 0x8000) != 0 ? -product : product,
          (a_field != 0 ? a_field : 1) + (b_field != 0 ? b_field : 1) - 254};
}

EXACT_HD TensorCoreTerm accumulator_term(float c) {
  const uint32_t bits = float_bits(c);
  const int field = static_cast<int>(bits >> 23 & 255u);
  const int64_t magnitude = static_cast<int64_t>(bits & 0x7fffffu) | (field != 0 ? 0x800000 : 0);
  return {bits >> 31 != 0 ? -magnitude : magnitude,
          magnitude == 0 ? kZeroExponent : (field != 0 ? field : 1) - 127};
}

// The term in units of 2^(e_max - 25), truncated towards zero.
EXACT_HD int64_t align_term(TensorCoreTerm term, int fraction_bits, int e_max) {
  const int64_t magnitude = term.significand < 0 ? -term.significand : term.significand;
  const int right = e_max - term.exponent - (kSumFractionBits - fraction_bits);
  const int64_t aligned = right <= 0 ? magnitude << -right : right > 62 ? 0 : magnitude >> right;
  return term.significand < 0 ? -aligned : aligned;
}

// The index of the highest set bit; value is not 0.
EXACT_HD int leading_bit(uint64_t value) {
#if defined(__CUDA_ARCH__)
  return 63 - __clzll(static_cast<long long>(value));
#else
  return 63 - __builtin_clzll(value);
#endif
}

// sum * 2^(e_max - 25), truncated towards zero to fp32.
EXACT_HD float truncate_sum(int64_t sum, int e_max) {
  if (sum == 0) return 0.0f;
  const uint32_t sign = sum < 0 ? 0x80000000u : 0u;
  const uint64_t magnitude = static_cast<uint64_t>(sum < 0 ? -sum : sum);
  const int top = leading_bit(magnitude);
  const int exponent = e_max - kSumFractionBits + top;
  if (exponent > 127) return float_from_bits(sign | 0x7f800000u);
  // The exponent of the last kept bit: 23 below the leading one, or that of the subnormals.
  const int last = (exponent < -126 ? -126 : exponent) - 23;
  const int right = last - (e_max - kSumFractionBits);
  const uint64_t kept = right > 63  ? 0
                        : right > 0 ? magnitude >> right
                                    : magnitude << -right;  // at most 24 bits
  if (kept == 0) return 0.0f;
  const uint32_t fraction = static_cast<uint32_t>(kept) & 0x7fffffu;
  const uint32_t field = kept >> 23 != 0 ? static_cast<uint32_t>(exponent + 127) : 0u;
  return float_from_bits(sign | field << 23 | fraction);
}

// A step with a NaN or an infinity among its operands: IEEE on the mathematical values.
EXACT_HD float non_finite_step(const uint16_t* a, int64_t a_stride, const uint16_t* b,
                               int64_t b_stride, int count, float c) {
  double sum = static_cast<double>(c);
  for (int i = 0; i < count; i++)
    sum += static_cast<double>(bf16_to_float(a[i * a_stride])) *
           static_cast<double>(bf16_to_float(b[i * b_stride]));
  return sum != sum ? float_from_bits(kCanonicalNan) : static_cast<float>(sum);
}

// A step whose last 16 - count products have a zero on both sides: they change nothing.
EXACT_HD float tensor_core_partial_step(const uint16_t* a, int64_t a_stride, const uint16_t* b,
                                        int64_t b_stride, int count, float c) {
  TensorCoreTerm products[kStepWidth];
  const TensorCoreTerm accumulator = accumulator_term(c);
  int e_max = accumulator.exponent;
  bool finite = (float_bits(c) >> 23 & 255u) != 255u;
  for (int i = 0; i < count; i++) {
    const uint16_t x = a[i * a_stride];
    const uint16_t y = b[i * b_stride];
    finite = finite && (x >> 7 & 255) != 255 && (y >> 7 & 255) != 255;
    products[i] = product_term(x, y);
    if (products[i].exponent > e_max) e_max = products[i].exponent;
  }
  if (!finite) return non_finite_step(a, a_stride, b, b_stride, count, c);
  int64_t sum = align_term(accumulator, 23, e_max);
  for (int i = 0; i < count; i++) sum += align_term(products[i], 14, e_max);
  return truncate_sum(sum, e_max);
}

// One k16 step on 16 elements of a and b, which lie `stride` elements apart.
EXACT_HD float tensor_core_step(const uint16_t* a, int64_t a_stride, const uint16_t* b,
                                int64_t b_stride, float c) {
  return tensor_core_partial_step(a, a_stride, b, b_stride, kStepWidth, c);
}

// Steps in ascending k. A remainder of k_count is a last step padded with zeros.
EXACT_HD float tensor_core_chain(const uint16_t* a, int64_t a_stride, const uint16_t* b,
                                 int64_t b_stride, int64_t k_count, float c) {
  for (int64_t k = 0; k < k_count; k += kStepWidth) {
    const int64_t left = k_count - k;
    c = tensor_core_partial_step(a + k * a_stride, a_stride, b + k * b_stride, b_stride,
                                 left < kStepWidth ? static_cast<int>(left) : kStepWidth, c);
  }
  return c;
}

// The same sum in steps of k8 (mma m16n8k8): what cuBLASLt's unaligned kernels run when the
// out-features are not a multiple of 8. Outside the engine's domain (shape.h); kept to say why.
EXACT_HD float tensor_core_chain_k8(const uint16_t* a, int64_t a_stride, const uint16_t* b,
                                    int64_t b_stride, int64_t k_count, float c) {
  for (int64_t k = 0; k < k_count; k += 8) {
    const int64_t left = k_count - k;
    c = tensor_core_partial_step(a + k * a_stride, a_stride, b + k * b_stride, b_stride,
                                 left < 8 ? static_cast<int>(left) : 8, c);
  }
  return c;
}

}  // namespace exact::contract
