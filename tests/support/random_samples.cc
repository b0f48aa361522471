#include "tests/support/random_samples.h"

#include <algorithm>
#include <set>

#include "kernels/base/bf16.h"
#include "kernels/contract/logit_edits.h"
#include "tests/support/expect_bits.h"

namespace exact {
namespace {

std::vector<LogitEdit> random_edits(RandomData& data, int64_t vocabulary) {
  const int64_t counts[] = {0, 1, 5, 40, 300, vocabulary};
  std::set<int32_t> tokens;
  const int64_t wanted = std::min(vocabulary, data.pick(counts));
  for (int64_t i = 0; i < wanted; i++) {
    tokens.insert(static_cast<int32_t>(data.between(0, vocabulary - 1)));
  }
  const float biases[] = {0.0f, 0.0f, 1.5f, -2.25f, 100.0f, -100.0f, 0.1f, 1e-40f, -0.0f, 1e30f};
  std::vector<LogitEdit> edits;
  for (const int32_t token : tokens) {
    const bool in_output = data.between(0, 1) == 0;
    const float bias = data.pick(biases);
    edits.push_back({token, in_output ? static_cast<int32_t>(data.between(1, 200)) : 0,
                     in_output || data.between(0, 1) == 0,
                     bias == 1e30f && data.between(0, 500) != 0 ? 0.0f : bias});
  }
  // Rarely, one that overflows with logits that are large.
  if (!edits.empty() && data.between(0, 60) == 0) edits.front().bias = 3.4e38f;
  return edits;
}

std::vector<uint32_t> random_mask(RandomData& data, int64_t vocabulary) {
  const int64_t choice = data.between(0, 11);
  if (choice < 5) return {};
  std::vector<uint32_t> mask(static_cast<size_t>(contract::mask_words(vocabulary)));
  const auto set = [&](int64_t i) { mask[static_cast<size_t>(i / 32)] |= 1u << (i % 32); };
  if (choice == 5) set(data.between(0, vocabulary - 1));
  if (choice == 6) set(data.between(0, 1) == 0 ? 0 : vocabulary - 1);
  const int64_t one_in = choice <= 6 ? 0 : choice <= 8 ? 2 : choice == 9 ? 100 : 7;
  for (int64_t i = 0; one_in != 0 && i < vocabulary; i++) {
    if (data.between(1, one_in) == 1) set(i);
  }
  if (choice == 11) {  // all but a few
    for (uint32_t& word : mask) word = ~word | ~0x00010100u;
    const auto last = static_cast<uint32_t>(vocabulary % 32);
    if (last != 0) mask.back() &= (1u << last) - 1u;
  }
  return mask;
}

}  // namespace

std::vector<uint16_t> random_logit_row(RandomData& data, int64_t vocabulary) {
  const int64_t choice = data.between(0, 11);
  const float spread = choice < 3 ? 4.0f : choice < 5 ? 0.3f : choice < 6 ? 30.0f : 2.0f;
  const float shift = choice == 4 ? -20.0f : choice == 7 ? 11.0f : 0.0f;
  std::vector<uint16_t> row(static_cast<size_t>(vocabulary));
  for (uint16_t& value : row) {
    switch (choice) {
      case 8:
        value = data.bf16(DataKind::tiny);
        break;
      case 9:
        value = data.bf16(DataKind::wide_exponents);
        break;
      case 10:  // both zeros, and nothing else
        value = static_cast<uint16_t>(data.bits() & 0x8000u);
        break;
      case 11:  // few values, many ties
        value = float_to_bf16(static_cast<float>(data.between(-3, 3)));
        break;
      default:
        value = float_to_bf16(shift + spread * data.normal());
    }
  }
  return row;
}

SampleRow random_sample_row(RandomData& data, int64_t vocabulary) {
  SampleRow row;
  row.seed = data.bits();
  row.sample_index = static_cast<uint32_t>(data.between(0, 5));
  row.position = static_cast<int32_t>(data.between(0, 40000));
  const float temperatures[] = {0.0f, 0.3f, 0.7f, 1.0f, 1.0f, 1.3f, 5.0f, 100.0f};
  const float top_ps[] = {0.0f, 1e-6f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 0.9999999f};
  const float min_ps[] = {1e-9f, 1e-4f, 0.02f, 0.1f, 0.7f, 1.0f};
  row.temperature = data.pick(temperatures);
  if (data.between(0, 1) == 0) {
    const int64_t most = data.between(0, 2) == 0 ? vocabulary + 5 : 60;
    row.top_k = static_cast<int32_t>(data.between(1, most));
  }
  if (data.between(0, 1) == 0) row.top_p = data.pick(top_ps);
  if (data.between(0, 2) == 0) row.min_p = data.pick(min_ps);
  return row;
}

DetailCase::DetailCase(RandomData& data, int64_t vocabulary)
    : edits_(random_edits(data, vocabulary)), allowed_(random_mask(data, vocabulary)) {
  const float repetitions[] = {1.0f, 1.3f, 0.8f, 0.01f, 100.0f};
  const float penalties[] = {0.0f, 0.5f, -0.7f, 100.0f, -100.0f, 0.1f};
  detail_.repetition_penalty = data.pick(repetitions);
  detail_.presence_penalty = data.pick(penalties);
  detail_.frequency_penalty = data.pick(penalties);
  if (data.between(0, 3) == 0) {
    detail_.forced_token = static_cast<int32_t>(data.between(0, vocabulary - 1));
  }
  const int64_t tops[] = {0, 1, 5, 20, contract::kMaxTopLogprobs};
  const auto top = static_cast<size_t>(std::min(vocabulary, data.pick(tops)));
  top_ids_.assign(top, -7);
  top_logprobs_.assign(top, -7.0f);
  wants_kept_ids_ = data.between(0, 2) != 0;
  wants_entropy_ = data.between(0, 2) != 0;
  kept_ids_ = {-7};
  point();
}

DetailCase::DetailCase(const DetailCase& other)
    : edits_(other.edits_),
      allowed_(other.allowed_),
      top_ids_(other.top_ids_),
      top_logprobs_(other.top_logprobs_),
      kept_ids_(other.kept_ids_),
      entropy_(other.entropy_),
      wants_kept_ids_(other.wants_kept_ids_),
      wants_entropy_(other.wants_entropy_),
      detail_(other.detail_) {
  point();
}

void DetailCase::point() {
  detail_.edits = edits_;
  detail_.allowed = allowed_;
  detail_.top_ids = top_ids_;
  detail_.top_logprobs = top_logprobs_;
  detail_.kept_ids = wants_kept_ids_ ? &kept_ids_ : nullptr;
  detail_.entropy = wants_entropy_ ? &entropy_ : nullptr;
}

std::string DetailCase::describe() const {
  return "repetition " + std::to_string(detail_.repetition_penalty) + ", presence " +
         std::to_string(detail_.presence_penalty) + ", frequency " +
         std::to_string(detail_.frequency_penalty) + ", " + std::to_string(edits_.size()) +
         " edits, " + (allowed_.empty() ? "no mask" : "a mask") + ", forced " +
         std::to_string(detail_.forced_token) + ", top " + std::to_string(top_ids_.size());
}

std::string DetailCase::difference(const DetailCase& want) const {
  const auto compare = [](const char* name, const auto& got, const auto& expected) {
    const auto equal = ranges_have_equal_bits(got, expected);
    return equal ? std::string() : std::string(name) + ": " + equal.message() + "; ";
  };
  const std::vector<float> entropy = {entropy_}, wanted_entropy = {want.entropy_};
  return compare("top_ids", top_ids_, want.top_ids_) +
         compare("top_logprobs", top_logprobs_, want.top_logprobs_) +
         compare("kept_ids", kept_ids_, want.kept_ids_) +
         compare("entropy", entropy, wanted_entropy);
}

}  // namespace exact
