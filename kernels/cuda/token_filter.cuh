// token_filter.cuh owns which tokens top-k, top-p and min-p keep (rule N9), by a cluster of blocks.
//
// A logit is bf16, so there are few values and many ties: tokens are counted by value, from the
// largest down, in windows of neighbouring values until the last one to keep is among those seen.
// The weight of a value is that of one token times how many there are: no weight is added twice.
// Among the tokens of the last value those with the lowest ids are kept.
#pragma once

#include "kernels/cuda/token_draw.cuh"

namespace exact::cuda {

constexpr int kWindow = 2048;      // values that are counted at once
constexpr int kFirstWindow = 256;  // at first: near the top few tokens are counted

// How logits are tempered, and the largest of them.
struct Tempered {
  float factor;  // 1 / T
  float max;     // z of the largest logit

  __device__ float z(float x) const { return x * factor; }
  __device__ float term(float x) const { return expf(x * factor - max); }
};

// What is kept: z above `least`, and z equal to it up to an id, if its term is large enough.
struct Kept {
  float least = float_from_bits(0xff800000u);  // -inf
  int last_id = 0;
  float least_term = 0.0f;

  __device__ bool in_order(float z, int id) const {
    return z > least || (z == least && id <= last_id);
  }
};

// ---- values as keys: 16 bits in the order of z, equal where z is equal
// Distinct bf16 logits have distinct z, but where z underflows: there the key is that of the
// smallest magnitude with the same z.
__device__ __forceinline__ uint32_t key_of(float x, float factor) {
  const uint32_t bits = __float_as_uint(x) >> 16;
  uint32_t magnitude = bits & 0x7fffu;
  const float size = fabsf(x * factor);
  if (size < 0x1p-126f) {
    uint32_t low = 0, high = magnitude;
    while (low < high) {
      const uint32_t middle = (low + high) / 2;
      if (bf16_to_float(static_cast<uint16_t>(middle)) * factor >= size) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    magnitude = low;
  }
  return (bits & 0x8000u) == 0 || magnitude == 0 ? 0x8000u + magnitude : 0x7fffu - magnitude;
}
__device__ __forceinline__ float value_of_key(uint32_t key) {
  return bf16_to_float(static_cast<uint16_t>(key >= 0x8000u ? key - 0x8000u : 0xffffu - key));
}
constexpr int kLeastKey = 0x80;  // of the finite values

// What the search shares in a block.
struct FilterControl {
  uint32_t below[kMaxWarps];  // of all blocks: the largest logit below the window
  BlockSums sums;
  struct {
    int key;  // -1: not in this window
    uint32_t ties, ties_kept;
    uint64_t weight_kept;  // of everything in front of the last kept token and its own
  } last;
  Found found;
  int last_id;
  uint32_t counts[kWindow];
};

// The last token to keep, as a value and how many of its ties.
struct LastKept {
  int key = -1;
  uint32_t ties = 0, ties_kept = 0;
  uint64_t weight = 0;
};

template <class Part>
class TokenFilter {
  static constexpr int kCluster = Part::kBlocks;

 public:
  __device__ TokenFilter(const Part& part, const Tempered& tempered, float largest,
                         FilterControl* control)
      : part_(part), tempered_(tempered), control_(control) {
    first_key_ = static_cast<int>(key_of(largest, tempered.factor));
  }

  // The k-th token of the order. k is below the count of tokens.
  __device__ LastKept find_top_k(uint32_t k) {
    return walk(
        [k](uint64_t count, uint64_t) { return count >= k; },
        [k](uint64_t count, uint64_t, uint64_t) { return static_cast<uint32_t>(k - count); });
  }
  // The first token at which the running weight reaches `wanted`, which is at least 1.
  __device__ LastKept find_weight(uint64_t wanted) {
    return walk([wanted](uint64_t, uint64_t weight) { return weight >= wanted; },
                [wanted](uint64_t, uint64_t before, uint64_t weight) {
                  return static_cast<uint32_t>((wanted - before + weight - 1) / weight);
                });
  }

  // The id of the `kept`-th of the tokens that have this z. `segments`: working memory of block 0.
  __device__ int find_tie(float z, uint32_t kept, uint64_t* segments) {
    sync_cluster<kCluster>();
    part_.visit([&](int id, const auto& x, bool present) {
      uint32_t count = 0;
      for (const float value : x) count += present && tempered_.z(value) == z ? 1u : 0u;
      count = __reduce_add_sync(kAllLanes, count);
      if (part_.lane == 0) {
        at_rank<kCluster>(segments, 0)[segment_of(part_.shape(), id)] = count;
      }
    });
    sync_cluster<kCluster>();
    if (part_.rank == 0) {
      const Found found = find_segment<Part::kThreads>(
          segments, segment_count(part_.shape()), [=](uint64_t) { return uint64_t{kept - 1}; },
          &control_->sums, &control_->found);
      if (threadIdx.x < 32) {
        const int id =
            find_in_segment(part_.shape(), part_.row(), found, part_.lane,
                            [&](float x, int) { return uint64_t{tempered_.z(x) == z ? 1u : 0u}; });
        if (part_.lane < kCluster) at_rank<kCluster>(control_, part_.lane)->last_id = id;
      }
    }
    sync_cluster<kCluster>();
    return control_->last_id;
  }

 private:
  // Counts the tokens of each value of [last, first], by blocks; returns the first key below.
  __device__ int count_window(int first, int last) {
    sync_cluster<kCluster>();  // others may still read the counts
    for (int i = static_cast<int>(threadIdx.x); i <= first - last; i += Part::kThreads) {
      control_->counts[i] = 0;
    }
    __syncthreads();
    const float least = tempered_.z(value_of_key(static_cast<uint32_t>(last)));
    const uint32_t counts = shared_address(control_->counts);
    float below = float_from_bits(0xff800000u);
    part_.visit([&](int, const auto& x, bool present) {
      for (const float value : x) {
        if (!present) continue;
        if (tempered_.z(value) >= least) {
          const auto key = static_cast<int>(key_of(value, tempered_.factor));
          if (key > first) continue;
          if (key >= last) {
            asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(
                             counts + 4u * static_cast<uint32_t>(first - key))
                         : "memory");
            continue;
          }
        }
        below = fmaxf(below, value);
      }
    });
    const uint32_t warp_below = __reduce_max_sync(kAllLanes, ordered_bits(below));
    if (part_.lane < kCluster) {
      at_rank<kCluster>(control_, part_.lane)->below[part_.warp] = warp_below;
    }
    sync_cluster<kCluster>();
    const uint32_t largest =
        __reduce_max_sync(kAllLanes, control_->below[part_.lane % Part::kAllWarps]);
    const float next = from_ordered_bits(largest);
    return contract::is_finite(next) ? static_cast<int>(key_of(next, tempered_.factor)) : -1;
  }

  __device__ uint32_t count_of(int index) const {
    uint32_t count = 0;
#pragma unroll
    for (int rank = 0; rank < kCluster; rank++) {
      count += at_rank<kCluster>(control_, rank)->counts[index];
    }
    return count;
  }
  __device__ uint64_t weight_of(int key) const {
    const float z = tempered_.z(value_of_key(static_cast<uint32_t>(key)));
    return contract::token_weight(z, tempered_.max);
  }

  // Down the windows, until reached(count, weight) holds for what is at or above a value. Every
  // block comes to the same answer by itself.
  template <class Reached, class TiesKept>
  __device__ LastKept walk(const Reached& reached, const TiesKept& ties_kept) {
    uint64_t count_above = 0, weight_above = 0;
    int first = first_key_, size = kFirstWindow;
    while (first >= kLeastKey) {
      const int last = first - size + 1 > kLeastKey ? first - size + 1 : kLeastKey;
      const int next = count_window(first, last);
      if (threadIdx.x == 0) control_->last.key = -1;
      // The counts of neighbouring values, a run a thread.
      const int each = (first - last) / Part::kThreads + 1;
      const int begin = static_cast<int>(threadIdx.x) * each;
      uint64_t my_count = 0, my_weight = 0;
      for (int i = begin; i < begin + each && i <= first - last; i++) {
        const uint32_t count = count_of(i);
        my_count += count;
        if (count > 0) my_weight += count * weight_of(first - i);
      }
      uint64_t counts = 0, weights = 0;
      uint64_t count = count_above + sum_before<Part::kThreads>(my_count, &control_->sums, &counts);
      uint64_t weight =
          weight_above + sum_before<Part::kThreads>(my_weight, &control_->sums, &weights);
      if (!reached(count, weight) && reached(count + my_count, weight + my_weight)) {
        int i = begin;
        uint32_t ties = count_of(i);
        uint64_t one = weight_of(first - i);
        while (!reached(count + ties, weight + ties * one)) {
          count += ties;
          weight += ties * one;
          i++;
          ties = count_of(i);
          one = weight_of(first - i);
        }
        const uint32_t kept = ties_kept(count, weight, one);
        control_->last = {first - i, ties, kept, weight + kept * one};
      }
      __syncthreads();
      if (control_->last.key >= 0) {
        return {control_->last.key, control_->last.ties, control_->last.ties_kept,
                control_->last.weight_kept};
      }
      count_above += counts;
      weight_above += weights;
      first = next;
      size = kWindow;
    }
    return {};
  }

  const Part& part_;
  Tempered tempered_;
  FilterControl* control_;
  int first_key_;
};

}  // namespace exact::cuda
