// bf16x8.cuh owns eight bf16 values as one access of 16 bytes, and their roundings in pairs. What
// an earlier kernel wrote is read by plain loads: a read-only load may be moved before the wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace exact::cuda {

constexpr int kVector = 8;  // elements of an access

__device__ __forceinline__ uint4 load8(const uint16_t* from) {
  return *reinterpret_cast<const uint4*>(from);
}
__device__ __forceinline__ void store8(uint16_t* to, const uint4& value) {
  *reinterpret_cast<uint4*>(to) = value;
}

__device__ __forceinline__ float low_half(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_half(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
// RN-even, the bits of float_to_bf16 for all but NaN.
__device__ __forceinline__ uint32_t round_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Applies operation(a, b, ...) -> fp32 to each of the eight and rounds; arguments are fp32.
template <class Operation, class... Vectors>
__device__ __forceinline__ uint32_t map_pair(const Operation& operation, Vectors... pairs) {
  return round_pair(operation(low_half(pairs)...), operation(high_half(pairs)...));
}
template <class Operation, class... Vectors>
__device__ __forceinline__ uint4 map8(const Operation& operation, const Vectors&... vectors) {
  return {map_pair(operation, vectors.x...), map_pair(operation, vectors.y...),
          map_pair(operation, vectors.z...), map_pair(operation, vectors.w...)};
}

// Rule N6.
__device__ __forceinline__ uint4 add8(const uint4& a, const uint4& b) {
  return map8([](float x, float y) { return x + y; }, a, b);
}
__device__ __forceinline__ uint4 multiply8(const uint4& a, const uint4& b) {
  return map8([](float x, float y) { return x * y; }, a, b);
}

}  // namespace exact::cuda
