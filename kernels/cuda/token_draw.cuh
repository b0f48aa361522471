// token_draw.cuh owns the integers of rule N9 on a GPU: weights, their sums over segments of
// neighbouring ids, and the search for the element at which a running sum exceeds a target. Integer
// sums are exact, so warps and blocks may take them in any order.
#pragma once

#include "kernels/contract/sampling.h"
#include "kernels/cuda/cluster_row.cuh"

namespace exact::cuda {

// floor(term * 2^40) = high * 2^20 + low. Adding 2^23 towards zero leaves the whole part in the low
// bits of the sum; taking it away, and out of the product, is exact.
struct SplitWeights {
  uint32_t high = 0, low = 0;

  template <int kCount>
  __device__ __forceinline__ void add(const float (&terms)[kCount]) {
    constexpr float kWhole = 0x1p23f;
    constexpr uint32_t kWholeBits = 0x4b000000u;
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      const float whole = __fmaf_rz(terms[i], 0x1p20f, kWhole);
      const float rest = __fmaf_rn(terms[i], 0x1p20f, kWhole - whole);
      high += __float_as_uint(whole);
      low += __float_as_uint(__fmaf_rz(rest, 0x1p20f, kWhole));
    }
    high -= kCount * kWholeBits;
    low -= kCount * kWholeBits;
  }
  // At most 1,024 terms a lane: no half exceeds 2^30. Sums of a warp take them apart again.
  __device__ __forceinline__ uint64_t total() const {
    return (uint64_t{high} << 20) + low;
  }
};

__device__ __forceinline__ uint64_t sum_lanes(uint64_t value) {
  for (int off = 16; off > 0; off /= 2) value += __shfl_xor_sync(kAllLanes, value, off);
  return value;
}
// Of lanes before this one, and their own.
__device__ __forceinline__ uint64_t running_sum(uint64_t value, int lane) {
  for (int off = 1; off < 32; off *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, value, off);
    if (lane >= off) value += before;
  }
  return value;
}

// The weight of a segment of which every lane has at most four terms.
template <int kCluster>
__device__ __forceinline__ void give_segment(const SplitWeights& weights, int lane, int segment,
                                             uint64_t* segments) {
  const uint32_t high = __reduce_add_sync(kAllLanes, weights.high);
  const uint32_t low = __reduce_add_sync(kAllLanes, weights.low);
  if (lane == 0) at_rank<kCluster>(segments, 0)[segment] = (uint64_t{high} << 20) + low;
}

// A running sum over all threads of a block: its own words in shared memory.
struct BlockSums {
  uint64_t warp[kMaxWarps];
};

// The sum of the threads before this one, and of all; every thread comes.
template <int kThreads>
__device__ __forceinline__ uint64_t sum_before(uint64_t value, BlockSums* sums, uint64_t* total) {
  constexpr int kWarps = kThreads / 32;
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, warp = thread / 32;
  const uint64_t running = running_sum(value, lane);
  if (lane == 31) sums->warp[warp] = running;
  __syncthreads();
  const uint64_t of_warp = lane < kWarps ? sums->warp[lane] : 0;
  const uint64_t warps = running_sum(of_warp, lane);
  *total = __shfl_sync(kAllLanes, warps, 31);
  const uint64_t before = __shfl_sync(kAllLanes, warps - of_warp, warp);
  __syncthreads();  // the words may be used again
  return before + running - value;
}

// Where a running sum over ascending ids exceeds a target.
struct Found {
  int segment;
  uint64_t left;  // of the target, when the segment begins
};

// segments[count] of block 0, whose threads all come. make_target(total) says what is exceeded.
template <int kThreads, class MakeTarget>
__device__ __forceinline__ Found find_segment(const uint64_t* segments, int count,
                                              const MakeTarget& make_target, BlockSums* sums,
                                              Found* found) {
  const int each = (count + kThreads - 1) / kThreads;
  const int begin = static_cast<int>(threadIdx.x) * each;
  const int end = begin + each < count ? begin + each : count;
  uint64_t mine = 0;
  for (int i = begin; i < end; i++) mine += segments[i];
  uint64_t total = 0;
  uint64_t running = sum_before<kThreads>(mine, sums, &total);
  const uint64_t target = make_target(total);
  if (running <= target && target < running + mine) {
    int i = begin;
    while (running + segments[i] <= target) running += segments[i++];
    *found = {i, target - running};
  }
  __syncthreads();
  return *found;
}

// Within the segment, by one warp: the id at which the sum of amount(x, id) exceeds what is left.
// All lanes get it.
template <class Amount>
__device__ __forceinline__ int find_in_segment(const RowShape& shape, const uint16_t* row,
                                               const Found& found, int lane, const Amount& amount) {
  constexpr int kGroup = 4;
  const int grouped_segments = segment_of(shape, shape.grouped);
  const bool grouped = found.segment < grouped_segments;
  const int first = grouped ? (found.segment * 32 + lane) * kGroup
                            : shape.grouped + (found.segment - grouped_segments) * 32 + lane;
  const int end = grouped ? shape.grouped : shape.vocabulary;
  uint64_t amounts[kGroup] = {};
  uint64_t mine = 0;
#pragma unroll
  for (int i = 0; i < kGroup; i++) {
    if ((i == 0 || grouped) && first + i < end) {
      amounts[i] = amount(bf16_to_float(row[first + i]), first + i);
    }
    mine += amounts[i];
  }
  uint64_t running = running_sum(mine, lane) - mine;
  int id = shape.vocabulary;  // of nobody
  for (int i = 0; i < kGroup; i++) {
    running += amounts[i];
    if (running > found.left) {
      id = first + i;
      break;
    }
  }
  return __reduce_min_sync(kAllLanes, id);
}

}  // namespace exact::cuda
