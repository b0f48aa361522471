// decode_attention.cuh owns what both forms of decode attention are made of: who a block works for,
// fragments of keys, values and queries, and rule N5's softmax as a quad of lanes holds it.
//
// Both forms turn the products round: keys (and columns of O) are the 16 rows of a tensor-core
// tile, query heads of one kv head its 8 columns, so that a group of up to 8 heads costs one tile:
//
//   scores   S^T (16 keys x 8 heads)    = K (16 keys x k16) * Q^T (k16 x 8 heads)
//   output   O^T (16 columns x 8 heads) = V^T (16 columns x k16 keys) * P^T (k16 keys x 8 heads)
//
// In the softmax lane l holds head l / 4 and, of each 8 columns of a key block, the two at
// 2 * (l % 4): the lane whose sum rule N5 adds them to, and P^T's fragment at the same time.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/base/result.h"
#include "kernels/contract/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {

inline constexpr int kHeadTile = 8;        // query heads of a tensor-core tile
inline constexpr int kRowBytes = 128;      // a slot of a column block
inline constexpr int kPieceBytes = 16384;  // the keys, or the values, of one key block

// The shape of the work, the same for every thread.
struct DecodeShape {
  int group = 0;           // query heads of a kv head
  int parts = 0;           // blocks that share a group: of at most 2 * kHeadTile heads each
  int first_sequence = 0;  // of this launch
  float c = 0;             // scale of the scores, rule N5
};

// What the pieces of a head width are, by column blocks of 64: [column block][key][128 bytes].
template <int kHeadWidth>
struct HeadShape {
  static constexpr int kKeys = contract::key_block(kHeadWidth);
  static constexpr int kColumnBlocks = (kHeadWidth + kColumnBlock - 1) / kColumnBlock;
  static constexpr int kTiles = kHeadWidth / 16;  // k16 steps of a score; 16-column tiles of O
  static constexpr int kColumnBlockBytes = kKeys * kRowBytes;
  static_assert(kColumnBlockBytes * kColumnBlocks == kPieceBytes);
};

// Four 8x8 matrices, each transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&registers)[4],
                                                         uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// `bytes` (a multiple of 16) from device memory to shared memory; `barrier` counts them.
__device__ __forceinline__ void copy_run(uint32_t to, const void* from, uint32_t bytes,
                                         uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// Whom a block works for: the heads [0, heads) from `first_head` on of one sequence.
struct DecodeWork {
  int row, position, first_page;
  int kv_head, first_head, heads;
  bool nobody;
};

template <int kHeadTiles>
__device__ __forceinline__ DecodeWork decode_work(const AttentionInputs& inputs,
                                                  const DecodeShape& shape, int sequence,
                                                  int kv_head_part) {
  const DeviceSequence s = inputs.step.sequences[shape.first_sequence + sequence];
  const int kv_head = kv_head_part / shape.parts, part = kv_head_part % shape.parts;
  const int first = part * kHeadTiles * kHeadTile;
  return {s.first_row,
          s.first_position,
          s.first_page,
          kv_head,
          kv_head * shape.group + first,
          min(shape.group - first, kHeadTiles * kHeadTile),
          s.row_count == 0};
}

// Q^T of this lane: head lane / 4 of each tile, zeros where there is none.
template <int kHeadWidth, int kHeadTiles>
__device__ __forceinline__ void load_query(uint32_t (&query)[kHeadWidth / 16][kHeadTiles][2],
                                           const AttentionInputs& inputs, const DecodeWork& work,
                                           int lane) {
  const uint16_t* row = inputs.query + work.row * inputs.query_stride +
                        static_cast<int64_t>(work.first_head) * kHeadWidth;
#pragma unroll
  for (int tile = 0; tile < kHeadTiles; tile++) {
    const int head = tile * kHeadTile + lane / 4;
#pragma unroll
    for (int step = 0; step < kHeadWidth / 16; step++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint16_t* from = row + head * kHeadWidth + step * 16 + half * 8 + lane % 4 * 2;
        query[step][tile][half] = head < work.heads ? *reinterpret_cast<const uint32_t*>(from) : 0u;
      }
    }
  }
}

// Offset in a piece of the 16-byte chunk `chunk` (of the head) of key `row`, for a lane whose
// row % 8 is `row`'s.
template <int kHeadWidth>
__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>(chunk / 8 * HeadShape<kHeadWidth>::kColumnBlockBytes +
                               row * kRowBytes + ((chunk % 8 ^ (row & 7)) << 4));
}

// Keys [16 tile, 16 tile + 16), columns of k16 step `step`: K as the first operand.
template <int kHeadWidth>
__device__ __forceinline__ void load_keys(uint32_t (&keys)[4], uint32_t piece, int tile, int step,
                                          int lane) {
  load_matrices(keys,
                piece + chunk_offset<kHeadWidth>(tile * 16 + lane % 16, 2 * step + lane / 16));
}

// Columns [16 tile, 16 tile + 16) of keys [16 step, 16 step + 16): V^T as the first operand.
template <int kHeadWidth>
__device__ __forceinline__ void load_values(uint32_t (&values)[4], uint32_t piece, int tile,
                                            int step, int lane) {
  load_matrices_transposed(values,
                           piece + chunk_offset<kHeadWidth>(step * 16 + lane / 16 * 8 + lane % 8,
                                                            2 * tile + lane / 8 % 2));
}

// Zeroes the values of all but the first `left` keys of a step: what lies there is nobody's.
__device__ __forceinline__ void drop_values(uint32_t (&values)[4], int left, int lane) {
  const int key = lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t mask =
        (key + half * 8 < left ? 0x0000ffffu : 0u) | (key + half * 8 + 1 < left ? 0xffff0000u : 0u);
    values[2 * half] &= mask;
    values[2 * half + 1] &= mask;
  }
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The largest of a quad's four values.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// (l0 + l2) + (l1 + l3), in each lane of the quad.
__device__ __forceinline__ float quad_sum(float value) {
  value = value + __shfl_xor_sync(0xffffffffu, value, 2);
  return value + __shfl_xor_sync(0xffffffffu, value, 1);
}

// What lane 4h of the quads holds for head h, for the two heads of an output fragment's columns.
__device__ __forceinline__ float2 of_heads(float value, int lane) {
  const int source = lane % 4 * 8;
  return make_float2(__shfl_sync(0xffffffffu, value, source),
                     __shfl_sync(0xffffffffu, value, source + 4));
}

// O^T of one tile, scaled and rounded, to the columns [column, column + 16) of the heads' rows.
__device__ __forceinline__ void store_output(uint16_t* out, int head_width, int heads, int column,
                                             const float (&sums)[4], float2 inverse, int lane) {
  const int head = lane % 4 * 2;
  uint16_t* to = out + static_cast<int64_t>(head) * head_width + column + lane / 4;
  if (head < heads) {
    to[0] = float_to_bf16(sums[0] * inverse.x);
    to[8] = float_to_bf16(sums[2] * inverse.x);
  }
  if (head + 1 < heads) {
    to[head_width] = float_to_bf16(sums[1] * inverse.y);
    to[head_width + 8] = float_to_bf16(sums[3] * inverse.y);
  }
}

// ---- the launches behind launch_decode_attention, of shapes that it has checked
Status launch_streamed_attention(const AttentionInputs& inputs, int multiprocessors,
                                 cudaStream_t stream);
Status launch_spread_attention(const AttentionInputs& inputs, void* scratch, size_t scratch_bytes,
                               cudaStream_t stream);

// Launches `kernel` so that it may begin while the one before ends.
template <class... Parameters, class... Arguments>
Status launch_overlapping(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                          int shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) {
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = 1;
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  if (error == cudaSuccess) return {};
  return Status(Code::device, std::string(name) + ": " + cudaGetErrorString(error));
}

}  // namespace exact::cuda
