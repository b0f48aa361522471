// bf16.h owns the bit patterns of bf16 and fp32. A bf16 is a uint16_t everywhere. Host and device.
#pragma once

#include <cstdint>
#include <cstring>

// A function that host and device share. Internal linkage and always inlined: a file compiled for
// AVX-512 must never lend its copy to one that runs without.
#if defined(__CUDACC__)
#define EXACT_HD __host__ __device__ __forceinline__ static
#define EXACT_HD_MEMBER __host__ __device__ __forceinline__
#else
#define EXACT_HD_MEMBER inline
#define EXACT_HD [[gnu::always_inline, maybe_unused]] static inline
#endif

namespace exact {

EXACT_HD uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
#endif
}

EXACT_HD float float_from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
#endif
}

EXACT_HD float bf16_to_float(uint16_t value) {
  return float_from_bits(static_cast<uint32_t>(value) << 16);
}

// Round to nearest even; a NaN stays a (quiet) NaN.
EXACT_HD uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

EXACT_HD float round_to_bf16(float value) {
  return bf16_to_float(float_to_bf16(value));
}

}  // namespace exact
