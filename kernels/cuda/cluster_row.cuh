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
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/logits_plan.h"
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

// The dynamic shared memory of a block; the row's part begins at an offset that the kernel chooses.
extern __shared__ __align__(16) uint8_t cluster_shared[];

// One block's part of a row, from the side of one thread. kShared: the part is copied into shared
// memory; else it is read from where the row lies.
template <int kChains, int kCluster, bool kShared>
class RowPart {
 public:
  static constexpr int kThreads = kChains / kCluster;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kAllWarps = kChains / 32;
  static constexpr int kBlocks = kCluster;

  int chain;       // of the rule
  int warp, lane;  // the warp among those of all blocks
  int rank;        // of the block

  __device__ RowPart(const RowShape& shape, int data_offset)
      : shape_(shape), data_offset_(data_offset) {
    const auto thread = static_cast<int>(threadIdx.x);
    rank = cluster_rank<kCluster>();
    chain = rank * kThreads + thread;
    warp = chain / 32;
    lane = chain % 32;
    group_rounds_ = shape.grouped / (4 * kChains);
    group_rest_ = shape.grouped % (4 * kChains);
    singles_ = shape.vocabulary - shape.grouped;
  }

  // Before the barriers are used, and before anything is copied.
  __device__ void init_barriers(RowControl* control) const {
    if constexpr (!kShared) return;
    if (threadIdx.x == 0) {
      for (int p = 0; p < kLoadParts; p++) {
        const int items = first_item(p + 1) - first_item(p);
        barrier_init(shared_address(&control->barrier[p]), items > 0 ? items : 1);
      }
      barrier_init_fence();
    }
    __syncthreads();
  }

  // Says which row, when it may be read; starts the copy, by the first warp.
  __device__ void begin(const uint16_t* row, RowControl* control) {
    row_ = row;
    if constexpr (!kShared) return;
    if (threadIdx.x >= 32) return;
    for (int p = 0; p < kLoadParts; p++) {
      const uint32_t barrier = shared_address(&control->barrier[p]);
      for (int item = first_item(p) + lane; item < first_item(p + 1); item += 32) {
        const bool group = item < group_items();
        const int width = group ? 4 * kThreads : kThreads;  // elements of the block in a round
        const int round = group ? item : item - group_items();
        const int first = (group ? 0 : shape_.grouped) + round * width * kCluster + rank * width;
        const int end = group ? shape_.grouped : shape_.vocabulary;
        const int left = end - first;
        const int count = left < 0 ? 0 : left < width ? left : width;
        const uint32_t bytes = static_cast<uint32_t>(count) * 2;
        const int to = data_offset_ + (group ? 0 : ones_offset()) + 2 * round * width;
        barrier_expect(barrier, bytes);
        if (bytes > 0) copy_bytes(shared_address(cluster_shared + to), row + first, bytes, barrier);
      }
    }
  }

  // The largest logit and the largest magnitude, as bits, over all blocks; waits for the copy. The
  // largest of this chain goes to chain_max, which is -inf where it has none.
  __device__ void find_largest(RowControl* control, float* chain_max, float* max,
                               uint32_t* magnitude) const {
    __nv_bfloat162 pair_max =
        __halves2bfloat162(__ushort_as_bfloat16(0xff80u), __ushort_as_bfloat16(0xff80u));
    uint32_t pair_magnitude = 0;
    const auto take = [&](uint32_t pair) {
      pair_max = __hmax2(pair_max, *reinterpret_cast<const __nv_bfloat162*>(&pair));
      pair_magnitude = __vmaxu2(pair_magnitude, pair & 0x7fff7fffu);
    };
    for (int p = 0; p < kLoadParts; p++) {
      const int begin = first_item(p), end = first_item(p + 1);
      if (kShared && end > begin) barrier_wait(shared_address(&control->barrier[p]), 0);
      const int whole = end < group_rounds_ ? end : group_rounds_;
#pragma unroll 8
      for (int round = begin; round < whole; round++) {
        const uint2 group = load_group(round);
        take(group.x);
        take(group.y);
      }
    }
    if (4 * chain < group_rest_) {
      const uint2 group = load_group(group_rounds_);
      take(group.x);
      take(group.y);
    }
#pragma unroll 4
    for (int round = 0; round * kChains + chain < singles_; round++) {
      const uint32_t one = load_one(round);
      take(one << 16 | one);
    }
    *chain_max = fmaxf(__high2float(pair_max), __low2float(pair_max));
    const uint32_t ordered = ordered_bits(*chain_max);
    const uint32_t upper = pair_magnitude >> 16, lower = pair_magnitude & 0xffffu;
    const uint32_t warp_max = __reduce_max_sync(kAllLanes, ordered);
    const uint32_t warp_magnitude = __reduce_max_sync(kAllLanes, upper > lower ? upper : lower);
    if (lane < kCluster) {
      at_rank<kCluster>(control, lane)->max[warp] = warp_max;
      at_rank<kCluster>(control, lane)->largest_magnitude[warp] = warp_magnitude;
    }
    sync_cluster<kCluster>();
    *max = from_ordered_bits(__reduce_max_sync(kAllLanes, control->max[lane % kAllWarps]));
    *magnitude = __reduce_max_sync(kAllLanes, control->largest_magnitude[lane % kAllWarps]);
  }

  // visit(id, x, present): of this chain, in the rule's order. x is float[4] in groups and float[1]
  // else; all lanes of a warp come together, some maybe with nothing present.
  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit_elements) const {
    const auto visit_group = [&](int round, const uint2& group, bool present) {
      const float x[4] = {low_half(group.x), high_half(group.x), low_half(group.y),
                          high_half(group.y)};
      visit_elements(round * 4 * kChains + 4 * chain, x, present);
    };
    int round = 0;
    constexpr int kAhead = 4;
    for (; round + kAhead <= group_rounds_; round += kAhead) {
      uint2 groups[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; i++) groups[i] = load_group(round + i);
#pragma unroll
      for (int i = 0; i < kAhead; i++) visit_group(round + i, groups[i], true);
    }
#pragma unroll 1
    for (; round < group_rounds_; round++) visit_group(round, load_group(round), true);
    if (4 * 32 * warp < group_rest_) {
      const bool present = 4 * chain < group_rest_;
      visit_group(group_rounds_, present ? load_group(group_rounds_) : uint2{0u, 0u}, present);
    }
#pragma unroll 1
    for (int r = 0; r * kChains + 32 * warp < singles_; r++) {
      const int id = r * kChains + chain;
      const bool present = id < singles_;
      const float x[1] = {present ? bf16_to_float(load_one(r)) : 0.0f};
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
  // Rounds of groups, and of all.
  __device__ int group_items() const {
    return group_rounds_ + (group_rest_ != 0 ? 1 : 0);
  }
  __device__ int first_item(int part) const {
    const int items = group_items() + (singles_ + kChains - 1) / kChains;
    return items * part / kLoadParts;
  }
  // Bytes from the start of the part to what is taken one by one.
  __device__ int ones_offset() const {
    return 2 * (shape_.grouped / kCluster);
  }

  __device__ uint2 load_group(int round) const {
    if constexpr (kShared) {
      const int offset = data_offset_ + 8 * static_cast<int>(threadIdx.x);
      return *reinterpret_cast<const uint2*>(cluster_shared + offset + round * 8 * kThreads);
    } else {
      return *reinterpret_cast<const uint2*>(row_ + 4 * chain + round * 4 * kChains);
    }
  }
  __device__ uint16_t load_one(int round) const {
    if constexpr (kShared) {
      const int offset = data_offset_ + ones_offset() + 2 * static_cast<int>(threadIdx.x);
      return *reinterpret_cast<const uint16_t*>(cluster_shared + offset + round * 2 * kThreads);
    } else {
      return row_[shape_.grouped + chain + round * kChains];
    }
  }

  RowShape shape_;
  int data_offset_;
  const uint16_t* row_ = nullptr;
  int group_rounds_, group_rest_;  // whole rounds, and the ids in the last one that is not
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

// ---- host
inline LaunchShape row_launch_shape(const LogitsPlan& plan, int chains) {
  return {.blocks = plan.count * plan.cluster,
          .threads = chains / plan.cluster,
          .shared_bytes = plan.shared_bytes,
          .cluster = plan.cluster};
}

// launch.operator()<chains, cluster, shared>() of the plan.
template <class Launch>
Status with_row_part(const LogitsPlan& plan, const Launch& launch) {
  constexpr int kChains = contract::kLogSumThreads;
  if (plan.vocabulary <= kOneWarpVocabulary) return launch.template operator()<32, 1, true>();
  const auto with_cluster = [&]<int kCluster>() {
    return plan.in_shared ? launch.template operator()<kChains, kCluster, true>()
                          : launch.template operator()<kChains, kCluster, false>();
  };
  switch (plan.cluster) {
    case 1:
      return with_cluster.template operator()<1>();
    case 2:
      return with_cluster.template operator()<2>();
    case 4:
      return with_cluster.template operator()<4>();
    default:
      return with_cluster.template operator()<8>();
  }
}

}  // namespace exact::cuda
