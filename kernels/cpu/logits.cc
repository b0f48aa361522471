#include "kernels/cpu/logits.h"

#include "kernels/contract/log_softmax.h"
#include "kernels/contract/philox.h"
#include "kernels/contract/sampling.h"
#include "kernels/cpu/detailed_sample.h"
#include "kernels/cpu/token_filter.h"

namespace exact::cpu {
namespace {

// What one row needs; `terms` are exp(z - largest z), zero for a token that a filter dropped.
struct RowScratch {
  float* terms;
  uint64_t* block_sums;
  uint64_t* keys;
  size_t bytes;

  RowScratch(void* base, int64_t vocabulary, bool filters) {
    ScratchCutter cutter(base);
    terms = cutter.take<float>(static_cast<size_t>(vocabulary));
    block_sums = cutter.take<uint64_t>(static_cast<size_t>(piece_count(vocabulary, kWeightBlock)));
    keys = cutter.take<uint64_t>(filters ? static_cast<size_t>(vocabulary) : 0);
    bytes = cutter.used();
  }
};

float logprob(const CpuContext& context, const uint16_t* logits, int64_t count, float largest,
              int64_t token) {
  const float sum = context.rows.exp_sum(logits, count, 1.0f, largest, nullptr);
  return contract::log_softmax_value(bf16_to_float(logits[token]), {largest, contract::log(sum)});
}

int32_t first_index_of(const uint16_t* logits, int64_t count, float value) {
  for (int64_t i = 0; i < count; i++) {
    if (bf16_to_float(logits[i]) == value) return static_cast<int32_t>(i);
  }
  check_failed(__FILE__, __LINE__, "i < count", "the largest logit is one of the logits");
}

SampleOutcome sample_row(const CpuContext& context, const uint16_t* logits, int64_t count,
                         const SampleRow& row, void* memory) {
  float largest_raw = 0.0f;
  if (!context.rows.largest_logit(logits, count, 1.0f, &largest_raw)) return {};
  if (row.temperature == 0.0f) {
    const int32_t token = first_index_of(logits, count, largest_raw);
    return {token, logprob(context, logits, count, largest_raw, token), 0.0f};
  }
  const RowScratch scratch(memory, count, has_filter(row));
  const float factor = 1.0f / row.temperature;  // contract::tempered_logit
  float largest = 0.0f;
  if (!context.rows.largest_logit(logits, count, factor, &largest)) return {};
  const float full_sum = context.rows.exp_sum(logits, count, factor, largest, scratch.terms);
  float kept_sum = full_sum;
  if (has_filter(row)) {
    drop_tokens(logits, count, factor, row, scratch.terms, scratch.keys);
    kept_sum = context.rows.sum_terms(scratch.terms, count);
  }
  const uint64_t total = context.rows.weigh_terms(scratch.terms, count, scratch.block_sums);
  const uint64_t random = contract::random_bits64(row.seed, row.sample_index, row.position,
                                                  contract::RandomPurpose::draw);
  const int32_t token =
      find_token(scratch.terms, count, scratch.block_sums, contract::draw_target(random, total));
  const float x = bf16_to_float(logits[token]);
  SampleOutcome outcome;
  outcome.token = token;
  outcome.processed_logprob =
      contract::log_softmax_value_of_kept(x * factor, {largest, contract::log(kept_sum)});
  outcome.logprob = factor == 1.0f
                        ? contract::log_softmax_value(x, {largest, contract::log(full_sum)})
                        : logprob(context, logits, count, largest_raw, token);
  return outcome;
}

}  // namespace

Status target_logprobs(CpuContext& context, const TensorView& logits,
                       std::span<const int32_t> targets, std::span<float> out) {
  context.pool.run(logits.rows, [&](int64_t r, int) {
    const auto* row = logits.row<const uint16_t>(r);
    const auto index = static_cast<size_t>(r);
    float largest = 0.0f;
    out[index] = context.rows.largest_logit(row, logits.columns, 1.0f, &largest)
                     ? logprob(context, row, logits.columns, largest, targets[index])
                     : float_from_bits(0x7fffffffu);
  });
  return {};
}

Status sample(CpuContext& context, const TensorView& logits, std::span<const SampleRow> rows,
              std::span<SampleOutcome> outcomes) {
  bool filters = false, details = false;
  for (const SampleRow& row : rows) {
    filters = filters || has_filter(row);
    details = details || row.detail != nullptr;
  }
  const size_t bytes = details ? detailed_sample_scratch(logits.columns)
                               : RowScratch(nullptr, logits.columns, filters).bytes;
  EXACT_RETURN_IF_ERROR(context.reserve_thread_scratch(bytes));
  context.pool.run(static_cast<int64_t>(rows.size()), [&](int64_t r, int thread) {
    const SampleRow& row = rows[static_cast<size_t>(r)];
    const auto draw = row.detail == nullptr ? sample_row : detailed_sample;
    outcomes[static_cast<size_t>(r)] = draw(context, logits.row<const uint16_t>(row.row),
                                            logits.columns, row, context.scratch_of(thread));
  });
  return {};
}

}  // namespace exact::cpu
