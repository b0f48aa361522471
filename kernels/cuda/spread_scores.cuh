// spread_scores.cuh owns the first kernel of the spread form of decode attention, and the scratch
// that the second one reads: fp32 scores [row][key] and maxima [row][key block], a row being a
// query head of a sequence. A warp a key block: it copies 16 KB of keys, multiplies and is done.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/decode_attention.cuh"

namespace exact::cuda {

inline constexpr float kMinusInfinity = -__builtin_inff();

// What the two kernels share in device memory.
struct SpreadScratch {
  float* scores;  // [rows][blocks * kKeys]
  float* maxima;  // [rows][blocks]
  int blocks;     // key blocks of the longest context

  template <int kHeadWidth>
  __device__ float* scores_of(int row) const {
    return scores + int64_t{row} * blocks * HeadShape<kHeadWidth>::kKeys;
  }
  __device__ float* maxima_of(int row) const { return maxima + int64_t{row} * blocks; }
};

inline constexpr int kScoringWarps = 4;

template <int kHeadWidth>
__device__ void copy_keys(uint32_t piece, uint32_t barrier, const AttentionInputs& inputs,
                          const DecodeWork& work, int block, int keys, int lane) {
  using Head = HeadShape<kHeadWidth>;
  const LayerPages pages = inputs.pages;
  const int run_slots = min(pages.page_size, Head::kKeys);
  const int runs = Head::kKeys / run_slots;
  const int first = lane % runs * run_slots, column_block = lane / runs;
  if (lane == 0)
    barrier_expect(barrier, static_cast<uint32_t>(keys * kRowBytes * Head::kColumnBlocks));
  __syncwarp();
  const int count = min(run_slots, keys - first);
  if (column_block >= Head::kColumnBlocks || count <= 0) return;
  const int key = block * Head::kKeys + first;
  const int page = inputs.step.pages[work.first_page + key / pages.page_size];
  const uint16_t* from =
      pages.keys(page, work.kv_head, column_block) + key % pages.page_size * kColumnBlock;
  copy_run(
      piece + static_cast<uint32_t>(column_block * Head::kColumnBlockBytes + first * kRowBytes),
      from, static_cast<uint32_t>(count * kRowBytes), barrier, evict_first_policy());
}

template <int kHeadWidth, int kHeadTiles>
__global__ void __launch_bounds__(kScoringWarps * 32, 3)
    spread_scores(const __grid_constant__ AttentionInputs inputs, const DecodeShape shape,
                  const SpreadScratch scratch) {
  using Head = HeadShape<kHeadWidth>;
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t piece = shared_address(shared) + static_cast<uint32_t>(warp * kPieceBytes);
  const uint32_t barrier =
      shared_address(shared) + static_cast<uint32_t>(kScoringWarps * kPieceBytes + warp * 8);
  if (lane == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
  }
  __syncwarp();
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  const auto sequence = static_cast<int>(blockIdx.z);
  const DecodeWork work =
      decode_work<kHeadTiles>(inputs, shape, sequence, static_cast<int>(blockIdx.y));
  const int block = static_cast<int>(blockIdx.x) * kScoringWarps + warp;
  const int last = work.position / Head::kKeys;
  if (work.nobody || block > last) return;
  const int seen = block == last ? work.position % Head::kKeys + 1 : Head::kKeys;
  copy_keys<kHeadWidth>(piece, barrier, inputs, work, block, (seen + 15) / 16 * 16, lane);
  uint32_t query[Head::kTiles][kHeadTiles][2];
  load_query<kHeadWidth, kHeadTiles>(query, inputs, work, lane);
  barrier_wait(barrier, 0);

  const int row = sequence * inputs.query_heads + work.first_head;
  float top[kHeadTiles][2];
  for (int tile = 0; tile < kHeadTiles; tile++) top[tile][0] = top[tile][1] = kMinusInfinity;
    // Two tiles of 16 keys at a time hide the latency of one chain behind the other.
#pragma unroll 1
  for (int key_tile = 0; key_tile < Head::kKeys / 16; key_tile += 2) {
    float scores[2][kHeadTiles][4] = {};
#pragma unroll
    for (int step = 0; step < Head::kTiles; step++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t keys[4];
        load_keys<kHeadWidth>(keys, piece, key_tile + i, step, lane);
#pragma unroll
        for (int tile = 0; tile < kHeadTiles; tile++)
          tensor_core_step(scores[i][tile], keys, query[step][tile][0], query[step][tile][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int head = tile * kHeadTile + lane % 4 * 2 + j % 2;
          const int key = (key_tile + i) * 16 + lane / 4 + j / 2 * 8;
          const float score = key < seen ? scores[i][tile][j] : kMinusInfinity;
          top[tile][j % 2] = fmaxf(top[tile][j % 2], score);
          if (head < work.heads)
            scratch.scores_of<kHeadWidth>(row + head)[block * Head::kKeys + key] = score;
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kHeadTiles; tile++) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float value = top[tile][j];
      for (int other = 4; other < 32; other *= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, other));
      const int head = tile * kHeadTile + lane * 2 + j;
      if (lane < 4 && head < work.heads) scratch.maxima_of(row + head)[block] = value;
    }
  }
}

}  // namespace exact::cuda
