// cluster_row.cuh owns how a cluster of blocks shares one row of V logits in the order of rule N7.
//
// The rule's chains (32, or 1,024) are split over the blocks, a thread a chain. A chain takes
// groups of four, then elements one by one (contract/log_softmax.h); a turn of all chains is a
// round. Each block copies the parts of the rounds that are its own into its shared memory, once; a
// row too long for that is read again and again from where it lies. What the chains find is
// gathered in the shared memory of one or all blocks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/base/bf16.h"
#include "kernels/contract/log_softmax.h"
#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 32;
constexpr int kLoadParts = 4;  // the copy of a row is waited for in so many parts

// The ids [0, grouped) go in groups of four, the others one by one.
struct RowShape {
  int vocabulary;
  int grouped;
};

inline RowShape row_shape(int64_t vocabulary) {
  const auto count = static_cast<int>(vocabulary);
  switch (contract::log_sum_form(vocabulary)) {
    case contract::LogSumForm::grouped:
      return {count, count};
    case contract::LogSumForm::grouped_then_tail:
      return {count, count - count % (4 * contract::kLogSumThreads)};
    default:
      return {count, 0};
  }
}

// Ids of one warp and round: neighbours, 128 in groups or 32 one by one.
EXACT_HD int segment_of(const RowShape& shape, int id) {
  constexpr int kGroupedIds = 128;
  if (id < shape.grouped) return id / kGroupedIds;
  return (shape.grouped + kGroupedIds - 1) / kGroupedIds + (id - shape.grouped) / 32;
}
EXACT_HD int segment_count(const RowShape& shape) {
  return segment_of(shape, shape.vocabulary - 1) + 1;
}

// fp32 as integers of the same order (-0 before +0), and back.
__device__ __forceinline__ uint32_t ordered_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered_bits(uint32_t ordered) {
  return __uint_as_float((ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

// ---- blocks of a cluster
template <int kCluster>
__device__ __forceinline__ int cluster_rank() {
  if constexpr (kCluster == 1) return 0;
  return static_cast<int>(__clusterRelativeBlockRank());
}
// The same place in the shared memory of another block.
template <int kCluster, class T>
__device__ __forceinline__ T* at_rank(T* mine, int rank) {
  if constexpr (kCluster == 1) return mine;
  return static_cast<T*>(__cluster_map_shared_rank(mine, static_cast<unsigned>(rank)));
}
template <int kCluster>
__device__ __forceinline__ void sync_cluster() {
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
  }
}

// What the warps of all blocks tell each other; an array has one writer a word.
struct RowControl {
  uint64_t barrier[kLoadParts];
  uint32_t max[kMaxWarps], largest_magnitude[kMaxWarps];  // of the logits; in every block
  float raw_sum[kMaxWarps], sum[kMaxWarps];               // of the chains; in block 0
};

__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, uint32_t bytes,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// One block's part of a row, from the side of one thread.
template <int kChains, int kCluster>
class RowPart {
 public:
  static constexpr int kThreads = kChains / kCluster;
  static constexpr int kWarps = kThreads / 32;

  int chain;       // of the rule
  int warp, lane;  // the warp among those of all blocks
  int rank;        // of the block

  __device__ RowPart(const RowShape& shape, const uint16_t* row, uint16_t* shared, bool in_shared)
      : shape_(shape), row_(row), shared_(shared), in_shared_(in_shared) {
    const auto thread = static_cast<int>(threadIdx.x);
    rank = cluster_rank<kCluster>();
    chain = rank * kThreads + thread;
    warp = chain / 32;
    lane = chain % 32;
    group_rounds_ = shape.grouped / (4 * kChains);
    group_rest_ = shape.grouped % (4 * kChains);
    group_items_ = group_rounds_ + (group_rest_ != 0 ? 1 : 0);
    singles_ = shape.vocabulary - shape.grouped;
    items_ = group_items_ + (singles_ + kChains - 1) / kChains;
    if (in_shared) {
      groups_ = shared + 4 * thread;
      ones_ = shared + shape.grouped / kCluster + thread;
      group_stride_ = 4 * kThreads;
      one_stride_ = kThreads;
    } else {
      groups_ = row + 4 * chain;
      ones_ = row + shape.grouped + chain;
      group_stride_ = 4 * kChains;
      one_stride_ = kChains;
    }
  }

  // Before the barriers are used, and before anything is copied.
  __device__ void init_barriers(RowControl* control) const {
    if (!in_shared_) return;
    if (threadIdx.x == 0) {
      for (int p = 0; p < kLoadParts; p++) {
        const int items = first_item(p + 1) - first_item(p);
        barrier_init(shared_address(&control->barrier[p]), items > 0 ? items : 1);
      }
      barrier_init_fence();
    }
    __syncthreads();
  }

  // Starts the copy, by the first warp.
  __device__ void copy(RowControl* control) const {
    if (!in_shared_ || threadIdx.x >= 32) return;
    for (int p = 0; p < kLoadParts; p++) {
      const uint32_t barrier = shared_address(&control->barrier[p]);
      for (int item = first_item(p) + lane; item < first_item(p + 1); item += 32) {
        const bool group = item < group_items_;
        const int width = group ? 4 * kThreads : kThreads;  // elements of the block in a round
        const int round = group ? item : item - group_items_;
        const int first = (group ? 0 : shape_.grouped) + round * width * kCluster + rank * width;
        const int end = group ? shape_.grouped : shape_.vocabulary;
        const int left = end - first;
        const int count = left < 0 ? 0 : left < width ? left : width;
        const uint32_t bytes = static_cast<uint32_t>(count) * 2;
        const uint16_t* const to =
            shared_ + (group ? 0 : shape_.grouped / kCluster) + round * width;
        barrier_expect(barrier, bytes);
        if (bytes > 0) copy_bytes(shared_address(to), row_ + first, bytes, barrier);
      }
    }
  }

  // The largest logit and the largest magnitude, as bits, over all blocks; waits for the copy.
  __device__ void find_largest(RowControl* control, float* max, uint32_t* magnitude) const {
    __nv_bfloat162 pair_max =
        __halves2bfloat162(__ushort_as_bfloat16(0xff80u), __ushort_as_bfloat16(0xff80u));
    uint32_t pair_magnitude = 0;
    const auto take = [&](uint32_t pair) {
      pair_max = __hmax2(pair_max, *reinterpret_cast<const __nv_bfloat162*>(&pair));
      pair_magnitude = __vmaxu2(pair_magnitude, pair & 0x7fff7fffu);
    };
    for (int p = 0; p < kLoadParts; p++) {
      const int begin = first_item(p), end = first_item(p + 1);
      if (in_shared_ && end > begin) barrier_wait(shared_address(&control->barrier[p]), 0);
#pragma unroll 4
      for (int item = begin; item < end; item++) {
        if (item < group_items_) {
          if (item == group_rounds_ && 4 * chain >= group_rest_) continue;
          const uint2 group = load_group(item);
          take(group.x);
          take(group.y);
        } else {
          const int round = item - group_items_;
          if (round * kChains + chain >= singles_) continue;
          const uint32_t one = ones_[round * one_stride_];
          take(one << 16 | one);
        }
      }
    }
    const float high = __high2float(pair_max), low = __low2float(pair_max);
    const uint32_t ordered = ordered_bits(fmaxf(high, low));
    const uint32_t upper = pair_magnitude >> 16, lower = pair_magnitude & 0xffffu;
    const uint32_t warp_max = __reduce_max_sync(kAllLanes, ordered);
    const uint32_t warp_magnitude = __reduce_max_sync(kAllLanes, upper > lower ? upper : lower);
    if (lane < kCluster) {
      at_rank<kCluster>(control, lane)->max[warp] = warp_max;
      at_rank<kCluster>(control, lane)->largest_magnitude[warp] = warp_magnitude;
    }
    sync_cluster<kCluster>();
    constexpr int kAllWarps = kWarps * kCluster;
    *max = from_ordered_bits(__reduce_max_sync(kAllLanes, control->max[lane % kAllWarps]));
    *magnitude = __reduce_max_sync(kAllLanes, control->largest_magnitude[lane % kAllWarps]);
  }

  // visit(id, x, present): of this chain, in the rule's order. x is float[4] in groups and float[1]
  // else; all lanes of a warp come together, some maybe with nothing present.
  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit_elements) const {
    const auto visit_group = [&](int round, bool present) {
      const uint2 group = present ? load_group(round) : uint2{0u, 0u};
      const float x[4] = {low_half(group.x), high_half(group.x), low_half(group.y),
                          high_half(group.y)};
      visit_elements(round * 4 * kChains + 4 * chain, x, present);
    };
#pragma unroll 2
    for (int round = 0; round < group_rounds_; round++) visit_group(round, true);
    if (4 * 32 * warp < group_rest_) visit_group(group_rounds_, 4 * chain < group_rest_);
    for (int first = 32 * warp; first < singles_; first += kChains) {
      const int id = first + lane;
      const bool present = id < singles_;
      const float x[1] = {present ? bf16_to_float(ones_[first / kChains * one_stride_]) : 0.0f};
      visit_elements(shape_.grouped + id, x, present);
    }
  }

  __device__ const RowShape& shape() const {
    return shape_;
  }
  __device__ const uint16_t* row() const {
    return row_;
  }

 private:
  // Parts of whole items: a part may be empty in a short row.
  __device__ int first_item(int part) const {
    return items_ * part / kLoadParts;
  }
  __device__ uint2 load_group(int round) const {
    return *reinterpret_cast<const uint2*>(groups_ + round * group_stride_);
  }

  RowShape shape_;
  const uint16_t* row_;
  uint16_t* shared_;
  bool in_shared_;
  const uint16_t* groups_;  // of this thread: its first group, and its first element of the others
  const uint16_t* ones_;
  int group_stride_, one_stride_;
  int group_rounds_, group_rest_;  // whole rounds, and the ids in the last one that is not
  int group_items_, items_;        // rounds of groups, and of all
  int singles_;
};

// Halves in each warp of chains; block 0 gets the sums.
template <int kCluster>
__device__ __forceinline__ void give_warp_sum(float sum, int warp, int lane, float* sums) {
  for (int off = 16; off > 0; off /= 2) sum = sum + __shfl_down_sync(kAllLanes, sum, off);
  if (lane == 0) at_rank<kCluster>(sums, 0)[warp] = sum;
}
// Then over the warps; each warp of block 0 may ask.
template <int kChains>
__device__ __forceinline__ float total_of_warps(const float* sums, int lane) {
  constexpr int kWarps = kChains / 32;
  float sum = sums[lane % kWarps];
  for (int off = kWarps / 2; off > 0; off /= 2) sum = sum + __shfl_down_sync(kAllLanes, sum, off);
  return __shfl_sync(kAllLanes, sum, 0);
}

// Rule N7's last step. Where x is the largest, x - max is +0: a row with both zeros at its top has
// a log_sum above 0, which hides the sign.
__device__ __forceinline__ float logprob_of(float x, float max, float sum) {
  return (x == max ? 0.0f : x - max) - contract::log(sum);
}

}  // namespace exact::cuda
