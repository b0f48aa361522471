// decode_wgmma.cuh owns wgmma for decode_matmul: 64 rows of A in registers times kN rows of
// B in shared memory, K contiguous, 128-byte swizzle. One instruction is one k16 step of rule N1.
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace exact::cuda {

// The second operand at `address` (shared, aligned to 1024 but for the k16 step within a row): rows
// of 128 bytes, swizzled by 128 bytes, groups of 8 rows 1024 bytes apart.
// Steps and rows move the low half only.
inline constexpr uint64_t kOperandHigh = uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32;

__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address) {
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // the other stride: one swizzle row has all of k
  return kOperandHigh | kUnused | ((address & 0x3ffffu) >> 4);
}

#define EXACT_SUMS4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define EXACT_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])

// c (64, kN) = step(a, b, c). A warp has rows 16 * warp ... of both a and c; a is laid out as four
// matrices of load_matrices: rows 0-7 and 8-15 of the low 8 k, then of the high 8. Register 4j + i
// of c: row lane / 4 + i / 2 * 8, column 8j + lane % 4 * 2 + i % 2.
template <int kN>
__device__ __forceinline__ void wgmma_step(float (&c)[kN / 2], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 64);
  if constexpr (kN == 8) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;"
        : EXACT_SUMS4(0)
        : EXACT_A, "l"(b));
  } else if constexpr (kN == 16) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 1, 1, 1, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4)
        : EXACT_A, "l"(b));
  } else if constexpr (kN == 24) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11}, {%12,%13,%14,%15}, %16, 1, 1, 1, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8)
        : EXACT_A, "l"(b));
  } else if constexpr (kN == 32) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, "
        "0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12)
        : EXACT_A, "l"(b));
  } else if constexpr (kN == 40) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19}, {%20,%21,%22,%23}, %24, 1, 1, 1, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12), EXACT_SUMS4(16)
        : EXACT_A, "l"(b));
  } else if constexpr (kN == 48) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23}, {%24,%25,%26,%27}, %28, 1, 1, 1, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12), EXACT_SUMS4(16),
          EXACT_SUMS4(20)
        : EXACT_A, "l"(b));
  } else if constexpr (kN == 56) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n56k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27}, {%28,%29,%30,%31}, %32, 1, 1, 1, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12), EXACT_SUMS4(16),
          EXACT_SUMS4(20), EXACT_SUMS4(24)
        : EXACT_A, "l"(b));
  } else if constexpr (kN == 64) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, "
        "1, 1, 1, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12), EXACT_SUMS4(16),
          EXACT_SUMS4(20), EXACT_SUMS4(24), EXACT_SUMS4(28)
        : EXACT_A, "l"(b));
  }
}

#undef EXACT_A
#undef EXACT_SUMS4

}  // namespace exact::cuda
