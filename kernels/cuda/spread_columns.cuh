// spread_columns.cuh owns the second kernel of the spread form of decode attention: a block a
// (sequence, kv head, 16 columns of O). One warp runs the chain over all keys, one the sums; one
// copies values to a ring, eight turn scores into probabilities, 32 keys each.
#pragma once

#include "kernels/cuda/spread_probabilities.cuh"

namespace exact::cuda {

// The chain of 16 columns. A product waits for the one before it, and lets nothing overtake: so
// each step's loads for the next segment stand between two products of this one.
template <int kHeadWidth, int kHeadTiles>
struct ColumnChain {
  struct Fragments {
    uint32_t values[kSegmentSteps][4];
    uint2 probabilities[kHeadTiles][kSegmentSteps];
    float2 factors[kHeadTiles];
  };

  ColumnShared<kHeadTiles>& shared;
  Segments<kHeadWidth> segments;
  int lane;
  float output[kHeadTiles][4] = {};
  Turn<kValueStages> value_turn;
  Turn<kProbabilityStages> probability_turn;

  __device__ void wait() const {
    barrier_wait(shared_address(&shared.probabilities_full[probability_turn.stage]),
                 probability_turn.parity);
    barrier_wait(shared_address(&shared.values_full[value_turn.stage]), value_turn.parity);
  }
  __device__ void give_back() {
    barrier_arrive(shared_address(&shared.probabilities_empty[probability_turn.stage]));
    barrier_arrive(shared_address(&shared.values_empty[value_turn.stage]));
    value_turn.advance();
    probability_turn.advance();
  }

  __device__ void load_step(Fragments& to, int i, int step) const {
    const ProbabilityStage<kHeadTiles>& stage = shared.probabilities[probability_turn.stage];
    const uint32_t row = static_cast<uint32_t>(lane / 16 * 8 + lane % 8);
    const uint32_t from = shared_address(shared.values[value_turn.stage]) + row * kSliceBytes +
                          ((static_cast<uint32_t>(lane / 8 % 2) ^ (row >> 2 & 1u)) << 4) +
                          static_cast<uint32_t>(i * kSegmentKeys * kSliceBytes);
    load_matrices_transposed(to.values[step],
                             from + static_cast<uint32_t>(step * 16 * kSliceBytes));
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) {
      to.probabilities[tile][step] = stage.fragments[i][tile][step][lane];
      if (step == 0 && i % Segments<kHeadWidth>::kInBlock == 0) {
        to.factors[tile] =
            *reinterpret_cast<const float2*>(&stage.factors[i][tile * kHeadTile + lane % 4 * 2]);
      }
    }
  }

  // Segment i of its chunk; kLoads: and the loads of the next one.
  template <bool kLoads>
  __device__ void multiply(const Fragments& now, int i, Fragments& next) {
    if (i % Segments<kHeadWidth>::kInBlock == 0) {
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
        const float2 f = now.factors[tile];
        output[tile][0] *= f.x, output[tile][1] *= f.y;
        output[tile][2] *= f.x, output[tile][3] *= f.y;
      }
    }
#pragma unroll
    for (int step = 0; step < kSegmentSteps; step++) {
      if (kLoads) load_step(next, (i + 1) % kChunkSegments, step);
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
        ordered_step(output[tile], now.values[step], now.probabilities[tile][step].x,
                     now.probabilities[tile][step].y);
      }
    }
  }

  __device__ void run() {
    const int count = segments.count();
    Fragments fragments[2];
    wait();
#pragma unroll
    for (int step = 0; step < kSegmentSteps; step++) load_step(fragments[0], 0, step);
    for (int first = 0; first < count; first += kChunkSegments) {
#pragma unroll
      for (int i = 0; i < kChunkSegments; i++) {
        const int left = count - first - i;
        if (left > 1) {
          if (i + 1 == kChunkSegments) {
            give_back();
            wait();
          }
          multiply<true>(fragments[i % 2], i, fragments[(i + 1) % 2]);
        } else if (left == 1) {
          multiply<false>(fragments[i % 2], i, fragments[(i + 1) % 2]);
        }
      }
    }
  }
};

template <int kHeadWidth, int kHeadTiles>
__global__ void __launch_bounds__(kColumnThreads, 1)
    spread_columns(const __grid_constant__ AttentionInputs inputs, const DecodeShape shape,
                   const SpreadScratch scratch) {
  extern __shared__ __align__(128) uint8_t shared_bytes[];
  auto& shared = *reinterpret_cast<ColumnShared<kHeadTiles>*>(shared_bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kValueStages; i++) {
      barrier_init(shared_address(&shared.values_full[i]), 32);
      barrier_init(shared_address(&shared.values_empty[i]), 32);
    }
    for (int i = 0; i < kProbabilityStages; i++) {
      barrier_init(shared_address(&shared.probabilities_full[i]), kMakers * 32);
      barrier_init(shared_address(&shared.probabilities_empty[i]), 2 * 32);
    }
  }
  __syncthreads();
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  const auto column_tile = static_cast<int>(blockIdx.x);
  const auto sequence = static_cast<int>(blockIdx.z);
  const DecodeWork work =
      decode_work<kHeadTiles>(inputs, shape, sequence, static_cast<int>(blockIdx.y));
  if (work.nobody) return;
  const Segments<kHeadWidth> segments{work.position / HeadShape<kHeadWidth>::kKeys};
  ColumnChain<kHeadWidth, kHeadTiles> chain{shared, segments, lane};
  if (warp == kChainWarp) {
    chain.run();
  } else if (warp == kSumWarp) {
    add_terms<kHeadWidth, kHeadTiles>(shared, segments, lane);
  } else if (warp == kCopyWarp) {
    copy_values<kHeadWidth, kHeadTiles>(shared, inputs, work, segments, column_tile, lane);
  } else {
    ProbabilityMaker<kHeadWidth, kHeadTiles> maker{
        shared,     scratch,
        segments,   sequence * inputs.query_heads + work.first_head,
        work.heads, warp - kProbabilityWarp,
        lane,       shape.c};
    maker.run();
  }
  __syncthreads();
  if (warp != kChainWarp) return;
  uint16_t* out = inputs.out + work.row * inputs.out_stride +
                  static_cast<int64_t>(work.first_head) * kHeadWidth;
#pragma unroll
  for (int tile = 0; tile < kHeadTiles; tile++) {
    const float2 inverse =
        *reinterpret_cast<const float2*>(&shared.inverse[tile * kHeadTile + lane % 4 * 2]);
    store_output(out + static_cast<int64_t>(tile) * kHeadTile * kHeadWidth, kHeadWidth,
                 work.heads - tile * kHeadTile, column_tile * 16, chain.output[tile], inverse,
                 lane);
  }
}

}  // namespace exact::cuda
