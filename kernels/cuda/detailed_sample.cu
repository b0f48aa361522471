// detailed_sample: draws a token for each row that has a SampleDetail         rules N7, N8, N9, N3
//   y = edited x;  z = y * (1 / T), -inf where masked;  then as sample.cu: what top-k, top-p and
//   min-p keep, and the draw; beside it the likeliest tokens, the entropy and the kept set
// shapes  logits (rows, V) bf16, contiguous; V % 8 == 0, 32 <= V <= 2^20; a DetailedRow a row
// order   log sums in the order of rule N7 and the entropy's in that of N3, a chain a thread
//         (row_block.cuh); weights are integers
// rounds  fp32 as the contract writes it; CUDA's expf has the bits of contract::exp
// launch  a block of 1,024 threads a row, which keeps z (V) fp32 in scratch; launches of at most
//         kRowsOfALaunch rows, one after the other, share it
#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/contract/log_softmax.h"
#include "kernels/contract/philox.h"
#include "kernels/contract/reduce.h"
#include "kernels/contract/shape.h"
#include "kernels/cuda/detailed_sample.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row_block.cuh"

namespace exact::cuda {
namespace {

constexpr int64_t kRowsOfALaunch = 64;

struct DetailShared {
  RowBlockShared block;
  uint32_t top_size;
  uint64_t top[contract::kMaxTopLogprobs];  // inverted key, id: ascending in the order
};

// What log_softmax_value needs, with a sum in place of its logarithm.
struct SoftmaxOfRow {
  float max;
  float sum;
};

class DetailedDraw {
 public:
  __device__ DetailedDraw(const uint16_t* logits, float* z, const DetailedRow& row, int vocabulary,
                          DetailShared* shared, DetailedOutcome* out)
      : block_(vocabulary, &shared->block),
        logits_(logits),
        z_(z),
        row_(row),
        shared_(shared),
        out_(out) {}

  __device__ void run() {
    SoftmaxOfRow raw{};
    float largest = 0.0f;
    if (!widen(&raw.max) || !edit() || !temper(&largest)) return report_nothing();
    raw.sum = block_.log_sum([&](int64_t i) { return expf(x(static_cast<int>(i)) - raw.max); });
    const int forced = row_.forced_token;
    if (row_.sample.temperature == 0.0f) {
      const int drawn = take_largest(largest);
      const int token = forced >= 0 ? forced : drawn;
      give(token, raw, token == drawn ? 0.0f : from_ordered_bits(kMinusInfinityKey));
    } else {
      drop_tokens(largest);
      const float sum =
          block_.log_sum([&](int64_t i) { return expf(z_[static_cast<int>(i)] - largest); });
      const int drawn = draw(largest);
      const int token = forced >= 0 ? forced : drawn;
      give(token, raw, logprob_of(z_[token], largest, sum));
    }
    report_top(raw);
    report_entropy(raw);
  }

 private:
  static constexpr uint32_t kMinusInfinityKey = 0x007fffffu;  // ordered bits

  __device__ float x(int id) const { return bf16_to_float(logits_[id]); }

  // z = x; false when one is not finite. max: the largest.
  __device__ bool widen(float* max) const {
    uint32_t magnitude = 0, largest = 0;
    block_.visit([&](int id) {
      const float value = x(id);
      z_[id] = value;
      const uint32_t bits = float_bits(value) & 0x7fffffffu;
      magnitude = bits > magnitude ? bits : magnitude;
      const uint32_t ordered = ordered_bits(value);
      largest = ordered > largest ? ordered : largest;
    });
    magnitude = block_.largest(magnitude);
    *max = from_ordered_bits(block_.largest(largest));
    return magnitude < 0x7f800000u;
  }

  // z = edited x; false when one is not finite any more.
  __device__ bool edit() const {
    bool bad = false;
    for (int i = block_.thread; i < row_.edit_count; i += kRowThreads) {
      const LogitEdit edit = row_.edits[i];
      const float value = contract::edited_logit(z_[edit.token], edit, row_.penalties);
      z_[edit.token] = value;
      bad = bad || !contract::is_finite(value);
    }
    return __syncthreads_or(bad ? 1 : 0) == 0;
  }

  // z = z / T, -inf where masked; false when one is not finite, or all are masked.
  __device__ bool temper(float* max) const {
    const float temperature = row_.sample.temperature;
    const float factor = temperature == 0.0f ? 1.0f : 1.0f / temperature;
    bool bad = false;
    uint32_t largest = 0;
    block_.visit([&](int id) {
      float value = from_ordered_bits(kMinusInfinityKey);
      if (contract::is_allowed(row_.allowed, id)) {
        value = z_[id] * factor;
        bad = bad || !contract::is_finite(value);
      }
      z_[id] = value;
      const uint32_t ordered = ordered_bits(value);
      largest = ordered > largest ? ordered : largest;
    });
    if (__syncthreads_or(bad ? 1 : 0) != 0) return false;
    largest = block_.largest(largest);
    *max = from_ordered_bits(largest);
    return largest != kMinusInfinityKey;
  }

  __device__ int take_largest(float largest) const {
    uint32_t first = ~0u;
    block_.visit([&](int id) {
      if (z_[id] == largest) first = min(first, static_cast<uint32_t>(id));
    });
    const auto token = static_cast<int>(~block_.largest(~first));
    if (row_.kept != nullptr) {
      for (int word = block_.thread; word < mask_words(); word += kRowThreads) {
        row_.kept[word] = token / 32 == word ? 1u << (token % 32) : 0u;
      }
    }
    return token;
  }

  // The last token that top-k and top-p keep; of an order that is kept whole, the key 0.
  __device__ LastToken last_in_order(float largest) const {
    const SampleRow& sample = row_.sample;
    const auto key_of = [&](int id) { return order_key(z_[id]); };
    const auto weight_of = [&](int id) { return weight(z_[id], largest); };
    const bool top_k = sample.top_k > 0 && sample.top_k < block_.vocabulary;
    const bool top_p = sample.top_p < 1.0f;
    LastToken last;
    if (top_k) {
      const auto k = static_cast<uint32_t>(sample.top_k);
      last = block_.find_last(
          key_of, weight_of, top_p, [k](uint64_t count, uint64_t) { return count >= k; },
          [k](uint64_t count, uint64_t, uint64_t) { return static_cast<uint32_t>(k - count); });
    }
    if (top_p) {
      const uint64_t total = top_k ? last.weight : total_weight(largest);
      const uint64_t reach = contract::fraction_ceiling(sample.top_p, total);
      const uint64_t wanted = reach > 0 ? reach : 1;  // at least one token
      last = block_.find_last(
          key_of, weight_of, true,
          [wanted](uint64_t, uint64_t running) { return running >= wanted; },
          [wanted](uint64_t, uint64_t before, uint64_t one) {
            return static_cast<uint32_t>((wanted - before + one - 1) / one);
          });
    }
    return last;
  }

  // z = -inf where top-k, top-p or min-p drop the token; the kept set.
  __device__ void drop_tokens(float largest) const {
    const LastToken last = last_in_order(largest);
    const float min_p = row_.sample.min_p;
    const uint64_t least =
        min_p > 0.0f ? contract::fraction_ceiling(min_p, uint64_t{1} << contract::kWeightBits) : 0;
    block_.visit_warps([&](int id, bool present) {
      bool kept = false;
      if (present) {
        const float value = z_[id];
        kept = contract::is_finite(value) && last.keeps(order_key(value), id) &&
               (least == 0 || weight(value, largest) >= least);
        if (!kept) z_[id] = from_ordered_bits(kMinusInfinityKey);
      }
      const uint32_t word = __ballot_sync(kAllLanes, kept);
      if (block_.lane == 0 && row_.kept != nullptr) row_.kept[id / 32] = word;
    });
    __syncthreads();
  }

  __device__ int draw(float largest) const {
    const SampleRow& sample = row_.sample;
    const uint64_t random = contract::random_bits64(sample.seed, sample.sample_index,
                                                    sample.position, contract::RandomPurpose::draw);
    return block_.find_id([&](int id) { return weight(z_[id], largest); },
                          [=](uint64_t total) { return contract::draw_target(random, total); });
  }

  // A dropped token, at -inf, has none.
  static __device__ uint64_t weight(float z, float largest) {
    return static_cast<uint64_t>(expf(z - largest) * 0x1p40f);
  }
  __device__ uint64_t total_weight(float largest) const {
    uint64_t sum = 0;
    block_.visit([&](int id) { sum += weight(z_[id], largest); });
    sum = sum_lanes(sum);
    if (block_.lane == 0) shared_->block.sums[block_.warp] = sum;
    __syncthreads();
    sum = sum_lanes(shared_->block.sums[block_.lane]);
    __syncthreads();  // the words may be used again
    return sum;
  }

  __device__ int mask_words() const {
    return static_cast<int>(contract::mask_words(block_.vocabulary));
  }

  __device__ void give(int token, const SoftmaxOfRow& raw, float processed) const {
    if (block_.thread != 0) return;
    out_->outcome = {token, logprob_of(x(token), raw.max, raw.sum), processed};
  }

  // The likeliest tokens are gathered in any order, then each finds its place.
  __device__ void report_top(const SoftmaxOfRow& raw) const {
    const int count = row_.top_count;
    if (count == 0) return;
    const auto key_of = [&](int id) { return order_key(x(id)); };
    const LastToken last = block_.find_last(
        key_of, [](int) { return uint64_t{0}; }, false,
        [count](uint64_t seen, uint64_t) { return seen >= static_cast<uint64_t>(count); },
        [count](uint64_t before, uint64_t, uint64_t) {
          return static_cast<uint32_t>(static_cast<uint64_t>(count) - before);
        });
    if (block_.thread == 0) shared_->top_size = 0;
    __syncthreads();
    block_.visit([&](int id) {
      const uint32_t key = key_of(id);
      if (!last.keeps(key, id)) return;
      uint32_t place = 0;
      asm volatile("atom.shared.add.u32 %0, [%1], 1;"
                   : "=r"(place)
                   : "r"(shared_address(&shared_->top_size))
                   : "memory");
      shared_->top[place] = uint64_t{~key} << 32 | static_cast<uint32_t>(id);
    });
    __syncthreads();
    if (block_.thread >= count) return;
    const uint64_t mine = shared_->top[block_.thread];
    int rank = 0;
    for (int i = 0; i < count; i++) rank += shared_->top[i] < mine ? 1 : 0;
    const auto id = static_cast<int>(mine & 0xffffffffu);
    out_->top_ids[rank] = id;
    out_->top_logprobs[rank] = logprob_of(x(id), raw.max, raw.sum);
  }

  __device__ void report_entropy(const SoftmaxOfRow& raw) const {
    if (!row_.wants_entropy) return;
    const contract::LogSoftmaxRow softmax{raw.max, contract::log(raw.sum)};
    const float sum = block_.row_sum([&](int64_t i) {
      const float logprob = contract::log_softmax_value(x(static_cast<int>(i)), softmax);
      return expf(logprob) * logprob;
    });
    if (block_.thread == 0) out_->entropy = contract::canonical_nan(-sum);
  }

  __device__ void report_nothing() const {
    const float nan = float_from_bits(0x7fffffffu);
    if (block_.thread < contract::kMaxTopLogprobs) {
      out_->top_ids[block_.thread] = -1;
      out_->top_logprobs[block_.thread] = nan;
    }
    if (block_.thread == 0) {
      out_->outcome = {-1, 0.0f, 0.0f};
      out_->entropy = nan;
    }
    if (row_.kept == nullptr) return;
    for (int word = block_.thread; word < mask_words(); word += kRowThreads) row_.kept[word] = 0;
  }

  RowBlock block_;
  const uint16_t* logits_;
  float* z_;
  const DetailedRow& row_;
  DetailShared* shared_;
  DetailedOutcome* out_;
};

__global__ void __launch_bounds__(kRowThreads)
    detailed_sample(const uint16_t* logits, int vocabulary, const DetailedRow* rows, float* scratch,
                    DetailedOutcome* outcomes) {
  __shared__ DetailShared shared;
  wait_for_earlier_kernels();
  const DetailedRow& row = rows[blockIdx.x];
  DetailedDraw draw(logits + row.sample.row * vocabulary,
                    scratch + static_cast<int64_t>(blockIdx.x) * vocabulary, row, vocabulary,
                    &shared, outcomes + blockIdx.x);
  draw.run();
}

}  // namespace

size_t detailed_sample_scratch(int64_t vocabulary, int64_t count) {
  return static_cast<size_t>(std::min(count, kRowsOfALaunch) * vocabulary) * sizeof(float);
}

Status launch_detailed_sample(const uint16_t* logits, int64_t vocabulary, const DetailedRow* rows,
                              int64_t count, void* scratch, DetailedOutcome* outcomes,
                              cudaStream_t stream) {
  EXACT_RETURN_IF_ERROR(contract::check_vocabulary(vocabulary));
  for (int64_t first = 0; first < count; first += kRowsOfALaunch) {
    const LaunchShape shape{.blocks = std::min(count - first, kRowsOfALaunch),
                            .threads = kRowThreads};
    EXACT_RETURN_IF_ERROR(launch_overlapped("detailed_sample", detailed_sample, shape, stream,
                                            logits, static_cast<int>(vocabulary), rows + first,
                                            static_cast<float*>(scratch), outcomes + first));
  }
  return {};
}

}  // namespace exact::cuda
