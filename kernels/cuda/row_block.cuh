// row_block.cuh owns how one block of 1,024 threads works on a row of fp32 values in device memory:
// reductions over the block, rule N7's and N3's sums, the id at which a running sum over ascending
// ids exceeds a target, and the last token of a prefix of rule N9's order, by radix.
//
// Every function is called by all threads of the block. Integer sums are exact in any order.
#pragma once

#include <cuda_runtime.h>

#include "kernels/base/bf16.h"
#include "kernels/contract/sampling.h"
#include "kernels/cuda/token_draw.cuh"

namespace exact::cuda {

constexpr int kRowThreads = 1024;
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kDigits = 256;  // of a key, eight bits at a time

// The last token of a prefix of the order.
struct LastToken {
  uint32_t key = 0;     // every key of a finite value is larger
  int id = 0;           // among those with this key, the last one
  uint64_t weight = 0;  // of the prefix, where it was asked for

  __device__ bool keeps(uint32_t other_key, int other_id) const {
    return other_key > key || (other_key == key && other_id <= id);
  }
};

struct RowBlockShared {
  uint32_t words[kRowWarps];
  float floats[kRowWarps];
  uint64_t sums[kRowWarps];
  int found_id;
  uint32_t counts[kDigits];
  uint64_t weights[kDigits];
  struct {
    uint32_t digit, ties;
    uint64_t count_before, weight_before, weight;
  } crossing;
};

// Keys ascend with the value; both zeros have one key, as they tie.
__device__ __forceinline__ uint32_t order_key(float z) {
  return ordered_bits(z == 0.0f ? 0.0f : z);
}

class RowBlock {
 public:
  const int thread, lane, warp, vocabulary;

  __device__ RowBlock(int vocabulary_in, RowBlockShared* shared)
      : thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        warp(thread / 32),
        vocabulary(vocabulary_in),
        shared_(shared) {}

  // visit(id), ids in any order.
  template <class Visit>
  __device__ void visit(const Visit& visit_id) const {
    for (int id = thread; id < vocabulary; id += kRowThreads) visit_id(id);
  }
  // visit(id, present): the 32 lanes of a warp come together, with neighbouring ids from a multiple
  // of 32 on; some may lie beyond the row.
  template <class Visit>
  __device__ void visit_warps(const Visit& visit_id) const {
    for (int first = 32 * warp; first < vocabulary; first += kRowThreads) {
      visit_id(first + lane, first + lane < vocabulary);
    }
  }

  __device__ uint32_t largest(uint32_t value) const {
    value = __reduce_max_sync(kAllLanes, value);
    if (lane == 0) shared_->words[warp] = value;
    __syncthreads();
    value = __reduce_max_sync(kAllLanes, shared_->words[lane]);
    __syncthreads();  // the words may be used again
    return value;
  }

  // Halves the sums of the first `warps` warps: in each warp, then over them. The chains of rules
  // N3 and N7, a thread a chain.
  __device__ float halve(float sum, int warps) const {
    for (int off = 16; off > 0; off /= 2) sum = sum + __shfl_down_sync(kAllLanes, sum, off);
    if (lane == 0) shared_->floats[warp] = sum;
    __syncthreads();
    sum = shared_->floats[lane % warps];
    for (int off = warps / 2; off > 0; off /= 2) {
      sum = sum + __shfl_down_sync(kAllLanes, sum, off);
    }
    sum = __shfl_sync(kAllLanes, sum, 0);
    __syncthreads();
    return sum;
  }

  // Rule N7: the sum of term(id).
  template <class Term>
  __device__ float log_sum(const Term& term) const {
    const contract::LogSumForm form = contract::log_sum_form(vocabulary);
    const int threads = contract::log_sum_threads(form);
    const float sum =
        thread < threads ? contract::log_sum_of_thread(form, vocabulary, 0, thread, term) : 0.0f;
    return halve(sum, threads / 32);
  }
  // Rule N3: the sum of term(id). In the domain, the lanes of an order are whole warps.
  template <class Term>
  __device__ float row_sum(const Term& term) const {
    const contract::RowSumOrder order = contract::row_sum_order(vocabulary, contract::kManyRows);
    const float sum = thread < order.threads
                          ? contract::row_sum_of_thread(order, vocabulary, thread, term)
                          : 0.0f;
    return halve(sum, order.threads / 32);
  }

  // In ascending id, the first at which the running sum of amount(id) exceeds make_target(total),
  // which is below the total. Each warp has a run of ids.
  template <class Amount, class MakeTarget>
  __device__ int find_id(const Amount& amount, const MakeTarget& make_target) const {
    const int each = (vocabulary + kRowThreads - 1) / kRowThreads * 32;
    const int begin = warp * each;
    const int end = begin + each < vocabulary ? begin + each : vocabulary;
    uint64_t mine = 0;
    for (int id = begin + lane; id < end; id += 32) mine += amount(id);
    mine = sum_lanes(mine);
    if (lane == 0) shared_->sums[warp] = mine;
    __syncthreads();
    const uint64_t of_warp = shared_->sums[lane];
    const uint64_t running = running_sum(of_warp, lane);
    const uint64_t target = make_target(__shfl_sync(kAllLanes, running, 31));
    uint64_t before = __shfl_sync(kAllLanes, running - of_warp, warp);
    if (before <= target && target < before + mine) {
      for (int first = begin; first < end; first += 32) {
        const int id = first + lane;
        const uint64_t sum = before + running_sum(id < end ? amount(id) : 0, lane);
        const uint32_t exceeding = __ballot_sync(kAllLanes, sum > target);
        if (exceeding != 0) {
          if (lane == 0) shared_->found_id = first + __ffs(static_cast<int>(exceeding)) - 1;
          break;
        }
        before = __shfl_sync(kAllLanes, sum, 31);
      }
    }
    __syncthreads();
    const int id = shared_->found_id;
    __syncthreads();  // the words may be used again
    return id;
  }

  // The last token of the shortest prefix of the order with `reached(count, weight)`, which grows
  // with both and holds for all tokens. Tokens of one key weigh the same; ties_kept(count, weight,
  // one): how many of those of the last key belong to it, after `count` tokens of this weight.
  // weighs: whether weights are wanted at all.
  template <class KeyOf, class WeightOf, class Reached, class TiesKept>
  __device__ LastToken find_last(const KeyOf& key_of, const WeightOf& weight_of, bool weighs,
                                 const Reached& reached, const TiesKept& ties_kept) const {
    uint32_t prefix = 0;
    uint64_t count = 0, weight = 0;  // of the keys above the prefix's
    for (int shift = 24; shift >= 0; shift -= 8) {
      count_digits(key_of, weight_of, weighs, prefix, shift);
      find_crossing(count, weight, reached);
      prefix = prefix << 8 | shared_->crossing.digit;
      count = shared_->crossing.count_before;
      weight = shared_->crossing.weight_before;
    }
    const uint32_t ties = shared_->crossing.ties;
    const uint64_t one = shared_->crossing.weight / ties;
    const uint32_t kept = ties_kept(count, weight, one);
    LastToken last{prefix, vocabulary, weight + kept * one};
    if (kept < ties) {
      last.id = find_id([&](int id) { return uint64_t{key_of(id) == prefix ? 1u : 0u}; },
                        [=](uint64_t) { return uint64_t{kept - 1}; });
    }
    return last;
  }

 private:
  // Counts and weighs the tokens under the prefix by their next digit.
  template <class KeyOf, class WeightOf>
  __device__ void count_digits(const KeyOf& key_of, const WeightOf& weight_of, bool weighs,
                               uint32_t prefix, int shift) const {
    __syncthreads();  // others may still read what the last turn found
    if (thread < kDigits) {
      shared_->counts[thread] = 0;
      shared_->weights[thread] = 0;
    }
    __syncthreads();
    visit_warps([&](int id, bool present) {
      const uint32_t key = present ? key_of(id) : 0;
      const bool under = present && (shift == 24 || key >> (shift + 8) == prefix);
      const uint64_t weight = under && weighs ? weight_of(id) : 0;
      add_to_digits(under, key >> shift & (kDigits - 1), weight, weighs);
    });
    __syncthreads();
  }

  // One addition a digit and warp: most tokens of a row share few digits.
  __device__ void add_to_digits(bool present, uint32_t digit, uint64_t weight, bool weighs) const {
    constexpr uint32_t kLow = (1u << 20) - 1;  // weights are at most 2^40: two halves, 32 lanes
    uint32_t left = __ballot_sync(kAllLanes, present);
    while (left != 0) {
      const int leader = __ffs(static_cast<int>(left)) - 1;
      const uint32_t leaders = __shfl_sync(kAllLanes, digit, leader);
      const bool mine = present && digit == leaders;
      const uint32_t group = __ballot_sync(kAllLanes, mine);
      uint64_t sum = 0;
      if (weighs) {
        const uint32_t low = static_cast<uint32_t>(weight) & kLow;
        const auto high = static_cast<uint32_t>(weight >> 20);
        sum = uint64_t{__reduce_add_sync(kAllLanes, mine ? high : 0u)} << 20;
        sum += __reduce_add_sync(kAllLanes, mine ? low : 0u);
      }
      if (lane == leader) {
        asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(shared_address(&shared_->counts[digit])),
                     "r"(__popc(group))
                     : "memory");
        asm volatile("red.shared.add.u64 [%0], %1;" ::"r"(shared_address(&shared_->weights[digit])),
                     "l"(sum)
                     : "memory");
      }
      left &= ~group;
    }
  }

  // The digit, from the largest down, at which it is reached. By the first warp, eight digits a
  // lane; everybody sees shared_->crossing.
  template <class Reached>
  __device__ void find_crossing(uint64_t count, uint64_t weight, const Reached& reached) const {
    if (warp == 0) {
      constexpr int kEach = kDigits / 32;
      const int first = kDigits - 1 - kEach * lane;
      uint64_t my_count = 0, my_weight = 0;
      for (int i = 0; i < kEach; i++) {
        my_count += shared_->counts[first - i];
        my_weight += shared_->weights[first - i];
      }
      count += running_sum(my_count, lane) - my_count;
      weight += running_sum(my_weight, lane) - my_weight;
      if (!reached(count, weight) && reached(count + my_count, weight + my_weight)) {
        int i = 0;
        while (!reached(count + shared_->counts[first - i], weight + shared_->weights[first - i])) {
          count += shared_->counts[first - i];
          weight += shared_->weights[first - i];
          i++;
        }
        shared_->crossing = {static_cast<uint32_t>(first - i), shared_->counts[first - i], count,
                             weight, shared_->weights[first - i]};
      }
    }
    __syncthreads();
  }

  RowBlockShared* shared_;
};

}  // namespace exact::cuda
