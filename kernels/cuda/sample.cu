// sample: draws a token for each row of logits                                   rules N7, N8, N9
//   z = x * (1 / T);  w = floor(exp(z - max z) * 2^40);  the first kept id, ascending, whose
//   running weight exceeds random * total / 2^64; logprob of x, processed logprob of the kept z
// shapes  logits (rows, V) bf16, contiguous; V % 8 == 0, 32 <= V <= 2^20; a SampleRow a row
// order   log sums in the order of rule N7, a chain a thread (cluster_row.cuh); weights are
// integers rounds  fp32 as the contract writes it; CUDA's expf has the bits of contract::exp launch
// a cluster of blocks a row, of 1,024 threads together (32 where V <= 2048). One pass for
//         the largest logit, one for the sums and the weights of segments of ids; with filters,
//         passes that count (token_filter.cuh) and one for what is kept. Block 0 draws.
#include "kernels/base/check.h"
#include "kernels/contract/philox.h"
#include "kernels/cuda/logits.h"
#include "kernels/cuda/logits_plan.h"
#include "kernels/cuda/token_filter.cuh"

namespace exact::cuda {
namespace {

// In each block's shared memory; then the segments, then the block's part of the row.
struct DrawControl {
  RowControl row;
  uint32_t first[kMaxWarps];        // greedy: the lowest id of the largest logit; in block 0
  uint64_t warp_weight[kMaxWarps];  // of all warps; in every block
  BlockSums sums;
  Found found;
};
struct FilteredDrawControl : DrawControl {
  FilterControl filter;
};

__device__ __forceinline__ bool has_filter(const SampleRow& row) {
  return row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
}

template <class Part>
struct Draw {
  static constexpr int kCluster = Part::kBlocks;
  static constexpr int kChains = Part::kThreads * kCluster;

  const Part& part;
  DrawControl* control;
  uint64_t* segments;
  float largest;  // logit

  // The lowest id of the largest logit, and its log-probability.
  __device__ void greedy(SampleOutcome* outcome) const {
    float sum = 0.0f;
    auto first = static_cast<unsigned>(part.shape().vocabulary);
    part.visit([&](int id, const auto& x, bool present) {
      if (!present) return;
      for (const float value : x) {
        sum = sum + expf(value - largest);
        if (value == largest) first = min(first, static_cast<unsigned>(id));
        id++;
      }
    });
    give_warp_sum<kCluster>(sum, part.warp, part.lane, control->row.raw_sum);
    first = __reduce_min_sync(kAllLanes, first);
    if (part.lane == 0) at_rank<kCluster>(control, 0)->first[part.warp] = first;
    sync_cluster<kCluster>();
    if (part.chain >= 32) return;
    const float total = total_of_warps<kChains>(control->row.raw_sum, part.lane);
    first = __reduce_min_sync(kAllLanes, control->first[part.lane % (kChains / 32)]);
    if (part.lane == 0) {
      *outcome = {static_cast<int32_t>(first), logprob_of(largest, largest, total), 0.0f};
    }
  }

  // Everything is kept: both sums and the weights in one pass.
  __device__ void weigh_all(const Tempered& tempered) const {
    const bool same = tempered.factor == 1.0f;
    float raw_sum = 0.0f, sum = 0.0f;
    part.visit([&](int id, const auto& x, bool present) {
      constexpr int kCount = sizeof(x) / sizeof(float);
      float terms[kCount];
#pragma unroll
      for (int i = 0; i < kCount; i++) {
        terms[i] = present ? tempered.term(x[i]) : 0.0f;
        sum = sum + terms[i];
      }
      if (!same && present) {
#pragma unroll
        for (int i = 0; i < kCount; i++) raw_sum = raw_sum + expf(x[i] - largest);
      }
      SplitWeights weights;
      weights.add(terms);
      give_segment<kCluster>(weights, part.lane, segment_of(part.shape(), id), segments);
    });
    give_warp_sum<kCluster>(same ? sum : raw_sum, part.warp, part.lane, control->row.raw_sum);
    give_warp_sum<kCluster>(sum, part.warp, part.lane, control->row.sum);
    sync_cluster<kCluster>();
  }

  // The sum of the raw terms; the weight of all tokens if it is wanted, in every block.
  __device__ uint64_t sum_raw(const Tempered& tempered, bool wants_weight) const {
    float raw_sum = 0.0f;
    SplitWeights weights;
    part.visit([&](int, const auto& x, bool present) {
      if (!present) return;
      constexpr int kCount = sizeof(x) / sizeof(float);
#pragma unroll
      for (int i = 0; i < kCount; i++) raw_sum = raw_sum + expf(x[i] - largest);
      if (!wants_weight) return;
      float terms[kCount];
#pragma unroll
      for (int i = 0; i < kCount; i++) terms[i] = tempered.term(x[i]);
      weights.add(terms);
    });
    give_warp_sum<kCluster>(raw_sum, part.warp, part.lane, control->row.raw_sum);
    if (!wants_weight) return 0;
    const uint64_t warp_weight = sum_lanes(weights.total());
    if (part.lane < kCluster) {
      at_rank<kCluster>(control, part.lane)->warp_weight[part.warp] = warp_weight;
    }
    sync_cluster<kCluster>();
    constexpr int kWarps = kChains / 32;
    return sum_lanes(part.lane < kWarps ? control->warp_weight[part.lane] : 0);
  }

  // What top-k, top-p and min-p keep, in that order.
  __device__ Kept filter(const SampleRow& row, const Tempered& tempered,
                         FilterControl* filter_control) const {
    const bool top_k = row.top_k > 0 && row.top_k < part.shape().vocabulary;
    const bool top_p = row.top_p < 1.0f;
    uint64_t weight = sum_raw(tempered, top_p && !top_k);
    TokenFilter<Part> tokens(part, tempered, largest, filter_control);
    LastKept last;
    if (top_k) {
      last = tokens.find_top_k(static_cast<uint32_t>(row.top_k));
      weight = last.weight;
    }
    if (top_p) {
      const uint64_t wanted = contract::fraction_ceiling(row.top_p, weight);
      last = tokens.find_weight(wanted > 0 ? wanted : 1);
    }
    Kept kept;
    if (last.key >= 0) {
      kept.least = tempered.z(value_of_key(static_cast<uint32_t>(last.key)));
      kept.last_id = part.shape().vocabulary;
      if (last.ties_kept < last.ties) {
        kept.last_id = tokens.find_tie(kept.least, last.ties_kept, segments);
      }
    }
    if (row.min_p > 0.0f) {
      // At most 2^24 or a multiple of a larger power of two: exact as fp32.
      const uint64_t least =
          contract::fraction_ceiling(row.min_p, uint64_t{1} << contract::kWeightBits);
      kept.least_term = static_cast<float>(least) * 0x1p-40f;
    }
    return kept;
  }

  __device__ void weigh_kept(const Tempered& tempered, const Kept& kept) const {
    float sum = 0.0f;
    part.visit([&](int id, const auto& x, bool present) {
      constexpr int kCount = sizeof(x) / sizeof(float);
      bool in_order[kCount], any = false;
#pragma unroll
      for (int i = 0; i < kCount; i++) {
        in_order[i] = present && kept.in_order(tempered.z(x[i]), id + i);
        any = any || in_order[i];
      }
      SplitWeights weights;
      if (__any_sync(kAllLanes, any)) {  // of most segments nothing is kept
        float terms[kCount];
#pragma unroll
        for (int i = 0; i < kCount; i++) {
          const float term = tempered.term(x[i]);
          terms[i] = in_order[i] && term >= kept.least_term ? term : 0.0f;
          sum = sum + terms[i];
        }
        weights.add(terms);
      }
      give_segment<kCluster>(weights, part.lane, segment_of(part.shape(), id), segments);
    });
    give_warp_sum<kCluster>(sum, part.warp, part.lane, control->row.sum);
    sync_cluster<kCluster>();
  }

  // By block 0, when all is weighed.
  __device__ void draw(const SampleRow& row, const Tempered& tempered, const Kept& kept,
                       SampleOutcome* outcome) const {
    const uint64_t random = contract::random_bits64(row.seed, row.sample_index, row.position,
                                                    contract::RandomPurpose::draw);
    const Found found = find_segment<Part::kThreads>(
        segments, segment_count(part.shape()),
        [=](uint64_t total) { return contract::draw_target(random, total); }, &control->sums,
        &control->found);
    if (part.chain >= 32) return;
    const int token = find_in_segment(
        part.shape(), part.row(), found, part.lane, [&](float x, int id) -> uint64_t {
          const float term = tempered.term(x);
          if (!kept.in_order(tempered.z(x), id) || term < kept.least_term) return 0;
          return static_cast<uint64_t>(term * 0x1p40f);
        });
    const float raw_sum = total_of_warps<kChains>(control->row.raw_sum, part.lane);
    const float sum = total_of_warps<kChains>(control->row.sum, part.lane);
    if (part.lane == 0) {
      const float x = bf16_to_float(part.row()[token]);
      *outcome = {token, logprob_of(x, largest, raw_sum),
                  logprob_of(tempered.z(x), tempered.max, sum)};
    }
  }
};

EXACT_HD constexpr int control_bytes(bool filters) {
  return static_cast<int>((filters ? sizeof(FilteredDrawControl) : sizeof(DrawControl)) + 15) / 16 *
         16;
}
EXACT_HD int segment_bytes(const RowShape& shape) {
  return (segment_count(shape) + 1) / 2 * 2 * static_cast<int>(sizeof(uint64_t));
}

template <int kChains, int kCluster, bool kShared, bool kFilters>
__global__ void __launch_bounds__(kChains / kCluster, (kCluster + 1) / 2)
    sample(const uint16_t* logits, const RowShape shape, const SampleRow* rows,
           SampleOutcome* outcomes) {
  using Control = std::conditional_t<kFilters, FilteredDrawControl, DrawControl>;
  using Part = RowPart<kChains, kCluster, kShared>;
  constexpr int kControlBytes = control_bytes(kFilters);
  auto* const control = reinterpret_cast<Control*>(cluster_shared);
  auto* const segments = reinterpret_cast<uint64_t*>(cluster_shared + kControlBytes);
  let_next_kernel_begin();
  Part part(shape, kControlBytes + segment_bytes(shape));
  part.init_barriers(&control->row);
  wait_for_earlier_kernels();
  const SampleRow row = rows[blockIdx.x / kCluster];
  SampleOutcome* const outcome = outcomes + blockIdx.x / kCluster;
  part.begin(logits + row.row * shape.vocabulary, &control->row);
  if constexpr (kCluster > 1) sync_cluster<kCluster>();  // all blocks are there
  float chain_max = 0.0f, largest = 0.0f;
  uint32_t magnitude = 0;
  part.find_largest(&control->row, &chain_max, &largest, &magnitude);
  const bool greedy = row.temperature == 0.0f;
  const float factor = greedy ? 1.0f : 1.0f / row.temperature;
  const float magnitude_z = bf16_to_float(static_cast<uint16_t>(magnitude)) * factor;
  if (magnitude >= 0x7f80u || !contract::is_finite(magnitude_z)) {
    if (part.chain == 0) *outcome = {-1, 0.0f, 0.0f};
    return;
  }
  const Draw<Part> draw{part, control, segments, largest};
  if (greedy) return draw.greedy(outcome);
  const Tempered tempered{factor, largest * factor};
  Kept kept;
  if constexpr (kFilters) {
    if (has_filter(row)) {
      kept = draw.filter(row, tempered, &control->filter);
      draw.weigh_kept(tempered, kept);
    } else {
      draw.weigh_all(tempered);
    }
  } else {
    draw.weigh_all(tempered);
  }
  if (part.rank == 0) draw.draw(row, tempered, kept, outcome);
}

}  // namespace

Result<LogitsPlan> plan_sample(int64_t vocabulary, int64_t rows, bool filters, int cluster) {
  EXACT_ASSIGN(LogitsPlan plan, plan_target_logprobs(vocabulary, rows, cluster));
  const int fixed = control_bytes(filters) + segment_bytes(row_shape(vocabulary));
  const int part = row_part_bytes(vocabulary, plan.cluster);
  plan.in_shared = fixed + part <= kMaxSharedBytes;
  plan.shared_bytes = fixed + (plan.in_shared ? part : 0);
  return plan;
}

Status launch_sample(const LogitsPlan& plan, const uint16_t* logits, const SampleRow* rows,
                     bool filters, SampleOutcome* outcomes, cudaStream_t stream) {
  return with_row_part(plan, [&]<int kChains, int kCluster, bool kShared>() {
    const auto kernel = filters ? sample<kChains, kCluster, kShared, true>
                                : sample<kChains, kCluster, kShared, false>;
    return launch_overlapped("sample", kernel, row_launch_shape(plan, kChains), stream, logits,
                             row_shape(plan.vocabulary), rows, outcomes);
  });
}

Status launch_sample(const uint16_t* logits, int64_t vocabulary, const SampleRow* rows,
                     int64_t count, bool filters, SampleOutcome* outcomes, cudaStream_t stream) {
  EXACT_ASSIGN(const LogitsPlan plan, plan_sample(vocabulary, count, filters));
  return launch_sample(plan, logits, rows, filters, outcomes, stream);
}

}  // namespace exact::cuda
