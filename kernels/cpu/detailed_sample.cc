#include "kernels/cpu/detailed_sample.h"

#include <algorithm>

#include "kernels/contract/log_softmax.h"
#include "kernels/contract/logit_edits.h"
#include "kernels/contract/philox.h"
#include "kernels/contract/sampling.h"
#include "kernels/cpu/token_filter.h"

namespace exact::cpu {
namespace {

const float kMinusInfinity = float_from_bits(0xff800000u);
const float kNan = float_from_bits(0x7fffffffu);

// `terms` are exp(z - largest z), zero for a token that is dropped.
struct DetailScratch {
  float* z;
  float* terms;
  uint64_t* block_sums;
  uint64_t* keys;
  size_t bytes;

  DetailScratch(void* base, int64_t vocabulary) {
    const auto count = static_cast<size_t>(vocabulary);
    ScratchCutter cutter(base);
    z = cutter.take<float>(count);
    terms = cutter.take<float>(count);
    block_sums = cutter.take<uint64_t>(static_cast<size_t>(piece_count(vocabulary, kWeightBlock)));
    keys = cutter.take<uint64_t>(count);
    bytes = cutter.used();
  }
};

SampleOutcome report_nothing(const SampleDetail& detail) {
  std::fill(detail.top_ids.begin(), detail.top_ids.end(), -1);
  std::fill(detail.top_logprobs.begin(), detail.top_logprobs.end(), kNan);
  if (detail.kept_ids != nullptr) detail.kept_ids->clear();
  if (detail.entropy != nullptr) *detail.entropy = kNan;
  return {};
}

// False when a logit is not finite any more.
bool edit(const SampleDetail& detail, int64_t count, float* x) {
  const contract::Penalties penalties{detail.repetition_penalty, detail.presence_penalty,
                                      detail.frequency_penalty};
  bool finite = true;
  for (const LogitEdit& edit : detail.edits) {
    EXACT_CHECK(edit.token >= 0 && edit.token < count, "an edit of a token of the vocabulary");
    float& value = x[edit.token];
    value = contract::edited_logit(value, edit, penalties);
    finite = finite && contract::is_finite(value);
  }
  return finite;
}

// The largest allowed z, lowest id on a tie; all the probability is its.
int32_t take_largest(const SampleDetail& detail, const float* z, int64_t count, float largest) {
  const auto token = static_cast<int32_t>(std::find(z, z + count, largest) - z);
  if (detail.kept_ids != nullptr) detail.kept_ids->assign(1, token);
  return token;
}

// Draws among the tokens that are kept; the others' z becomes -inf. `sum` is that of the terms.
int32_t draw(const CpuContext& context, const SampleRow& row, int64_t count, float largest,
             const DetailScratch& scratch, float* sum) {
  *sum = context.rows.exp_terms(scratch.z, count, largest, scratch.terms);
  if (has_filter(row) || row.detail->kept_ids != nullptr) {
    drop_tokens(scratch.z, count, row, scratch.terms, scratch.keys, row.detail->kept_ids);
  }
  if (has_filter(row)) *sum = context.rows.sum_terms(scratch.terms, count);
  const uint64_t total = context.rows.weigh_terms(scratch.terms, count, scratch.block_sums);
  const uint64_t random = contract::random_bits64(row.seed, row.sample_index, row.position,
                                                  contract::RandomPurpose::draw);
  return find_token(scratch.terms, count, scratch.block_sums, contract::draw_target(random, total));
}

void report(const CpuContext& context, const SampleDetail& detail, const uint16_t* logits,
            int64_t count, const contract::LogSoftmaxRow& raw) {
  find_first_tokens(logits, count, detail.top_ids);
  std::transform(detail.top_ids.begin(), detail.top_ids.end(), detail.top_logprobs.begin(),
                 [&](int32_t token) {
                   return contract::log_softmax_value(bf16_to_float(logits[token]), raw);
                 });
  if (detail.entropy == nullptr) return;
  *detail.entropy = context.rows.entropy(logits, count, raw.max, raw.log_sum);
}

}  // namespace

size_t detailed_sample_scratch(int64_t vocabulary) {
  return DetailScratch(nullptr, vocabulary).bytes;
}

SampleOutcome detailed_sample(const CpuContext& context, const uint16_t* logits, int64_t count,
                              const SampleRow& row, void* memory) {
  const SampleDetail& detail = *row.detail;
  EXACT_CHECK(detail.top_ids.size() == detail.top_logprobs.size(), "a log-probability a top id");
  EXACT_CHECK(detail.forced_token < count, "a forced token of the vocabulary");
  EXACT_CHECK(detail.allowed.empty() ||
                  static_cast<int64_t>(detail.allowed.size()) == contract::mask_words(count),
              "a mask of the vocabulary");
  contract::LogSoftmaxRow raw{};
  if (!context.rows.largest_logit(logits, count, 1.0f, &raw.max)) return report_nothing(detail);
  const DetailScratch scratch(memory, count);
  context.rows.widen(logits, count, scratch.z);
  if (!edit(detail, count, scratch.z)) return report_nothing(detail);
  const bool greedy = row.temperature == 0.0f;
  const float factor = greedy ? 1.0f : 1.0f / row.temperature;  // contract::tempered_logit
  const uint32_t* mask = detail.allowed.empty() ? nullptr : detail.allowed.data();
  float largest = kMinusInfinity;
  const bool finite = context.rows.temper(scratch.z, count, factor, mask, &largest);
  if (!finite || largest == kMinusInfinity) return report_nothing(detail);

  raw.log_sum = contract::log(context.rows.exp_sum(logits, count, 1.0f, raw.max, nullptr));
  float sum = 1.0f;
  const int32_t drawn = greedy ? take_largest(detail, scratch.z, count, largest)
                               : draw(context, row, count, largest, scratch, &sum);
  const int32_t token = detail.forced_token >= 0 ? detail.forced_token : drawn;
  SampleOutcome outcome;
  outcome.token = token;
  outcome.logprob = contract::log_softmax_value(bf16_to_float(logits[token]), raw);
  if (greedy) {
    outcome.processed_logprob = token == drawn ? 0.0f : kMinusInfinity;
  } else {
    outcome.processed_logprob =
        contract::log_softmax_value_of_kept(scratch.z[token], {largest, contract::log(sum)});
  }
  report(context, detail, logits, count, raw);
  return outcome;
}

}  // namespace exact::cpu
