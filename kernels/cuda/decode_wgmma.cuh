// decode_wgmma.cuh owns wgmma for decode_matmul: 64 rows of A times kN rows of B, both in shared
// memory, K contiguous, 128-byte swizzle. One instruction is one k16 step of rule N1.
#pragma once

#include <cstdint>

namespace exact::cuda {

// The operand at `address` (shared, aligned to 1024 but for the k16 step within a row): rows of 128
// bytes, swizzled by 128 bytes, groups of 8 rows 1024 bytes apart.
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kGroupStride = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // the other stride: one swizzle row has all of k
  return kSwizzle128 | kGroupStride | kUnused | ((address & 0x3ffffu) >> 4);
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of the committed groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Reads and writes of the sums stay on their side of this point.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) asm volatile("" : "+f"(values[i])::"memory");
}

#define EXACT_SUMS4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])

// c (64, kN) = step(a, b, c). Register 4j + i of a thread: row warp * 16 + lane / 4 + i / 2 * 8,
// column 8j + lane % 4 * 2 + i % 2.
template <int kN>
__device__ __forceinline__ void wgmma_step(float (&c)[kN / 2], uint64_t a, uint64_t b) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 64);
  if constexpr (kN == 8) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3}, %4, %5, 1, 1, 1, 0, 0;"
        : EXACT_SUMS4(0)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 16) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 24) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11}, %12, %13, 1, 1, 1, 0, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 32) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, 1, 1, 1, 0, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 40) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19}, %20, %21, 1, 1, 1, 0, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12), EXACT_SUMS4(16)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 48) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23}, %24, %25, 1, 1, 1, 0, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12), EXACT_SUMS4(16),
          EXACT_SUMS4(20)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 56) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n56k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27}, %28, %29, 1, 1, 1, 0, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12), EXACT_SUMS4(16),
          EXACT_SUMS4(20), EXACT_SUMS4(24)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 64) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
        : EXACT_SUMS4(0), EXACT_SUMS4(4), EXACT_SUMS4(8), EXACT_SUMS4(12), EXACT_SUMS4(16),
          EXACT_SUMS4(20), EXACT_SUMS4(24), EXACT_SUMS4(28)
        : "l"(a), "l"(b));
  }
}

#undef EXACT_SUMS4

}  // namespace exact::cuda
