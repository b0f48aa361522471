// wgmma.cuh owns the PTX of warpgroup products and what goes with it: descriptors of tiles in
// shared memory, fences, plain bulk copies, named barriers and register budgets. A product is
// issued by the 128 threads of a warpgroup and runs on its own: its accumulators and its A
// registers belong to it until wgmma_wait; settle() keeps the compiler from using them earlier.
//
// Every k16 of a product is one step of rule N1, whatever its N.
#pragma once

#include <cstdint>

namespace exact::cuda {

// A tile of 128-byte rows with the 128-byte swizzle, aligned to 1024 bytes at row 0.
// Rows along N (or M), k along the row: stride_bytes from 8 rows to the next 8; the next k16 is 32
// bytes on. Rows along k (transposed): stride_bytes from 8 rows of k to the next 8, leading_bytes
// from 64 columns to the next 64.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t address, uint32_t leading_bytes,
                                                    uint32_t stride_bytes) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) |
         static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | uint64_t{1} << 62;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// From here on the registers hold what was awaited.
template <int kCount>
__device__ __forceinline__ void settle(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) asm volatile("" : "+f"(registers[i])::"memory");
}

template <int kSteps>
__device__ __forceinline__ void settle(uint32_t (&registers)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kSteps; i++) asm volatile("" : "+r"(registers[i / 4][i % 4])::"memory");
}

// d = a b (+ d). a: 64 rows of k16 in registers, as mma.sync m16n8k16 has them, a warp 16 rows;
// d[4 g + 2 h + e]: row lane / 4 + 8 h, column 8 g + lane % 4 * 2 + e.
#define EXACT_EIGHT(d, i)                                                                       \
  "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3]), "+f"((d)[(i) + 4]), \
      "+f"((d)[(i) + 5]), "+f"((d)[(i) + 6]), "+f"((d)[(i) + 7])
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, add, 1, 1, %38;\n}\n"
      : EXACT_EIGHT(d, 0), EXACT_EIGHT(d, 8), EXACT_EIGHT(d, 16), EXACT_EIGHT(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),
        "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ __forceinline__ void wgmma(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,"
      "%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "{%64,%65,%66,%67}, %68, add, 1, 1, %70;\n}\n"
      : EXACT_EIGHT(d, 0), EXACT_EIGHT(d, 8), EXACT_EIGHT(d, 16), EXACT_EIGHT(d, 24),
        EXACT_EIGHT(d, 32), EXACT_EIGHT(d, 40), EXACT_EIGHT(d, 48), EXACT_EIGHT(d, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),
        "n"(kTransposed ? 1 : 0));
}
#undef EXACT_EIGHT

// Contiguous bytes to shared memory; `barrier` counts them. All multiples of 16.
__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, uint32_t bytes,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
      : "memory");
}

// And back: contiguous bytes of shared memory to device memory, in this thread's group of copies.
__device__ __forceinline__ void copy_bytes_out(void* to, uint32_t from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copies_out_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until this thread's copies have read shared memory, or are done altogether.
__device__ __forceinline__ void copies_out_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void copies_out_wait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                               uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// What this thread has stored to shared memory is seen by wgmma and by the copy engine.
__device__ __forceinline__ void shared_stores_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Barrier `name` (1 to 15) of `threads` threads; those that arrive do not wait.
__device__ __forceinline__ void named_barrier_sync(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// A warpgroup's registers a thread, a multiple of 8; a block's sum can't grow.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace exact::cuda
