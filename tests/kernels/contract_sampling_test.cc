// Rules N7 to N9: exact thresholds, what each truncation keeps, ties, refusals and the two
// log-probabilities of a draw.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/sampling.h"
#include "kernels/reference/reference.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

using reference::kept_tokens;
using reference::sample;

std::vector<uint16_t> logits_of(const std::vector<float>& values) {
  std::vector<uint16_t> logits;
  for (const float value : values) logits.push_back(float_to_bf16(value));
  return logits;
}

std::vector<int> kept_ids(const std::vector<float>& z, const SampleRow& row) {
  const std::vector<bool> kept = kept_tokens(z, row);
  std::vector<int> ids;
  for (size_t i = 0; i < kept.size(); i++)
    if (kept[i]) ids.push_back(static_cast<int>(i));
  return ids;
}

TEST(FractionCeiling, IsExact) {
  EXPECT_EQ(contract::fraction_ceiling(0.5f, 3), 2u);
  EXPECT_EQ(contract::fraction_ceiling(0.5f, 4), 2u);
  EXPECT_EQ(contract::fraction_ceiling(1.0f, 12345), 12345u);
  EXPECT_EQ(contract::fraction_ceiling(0.0f, 12345), 0u);
  EXPECT_EQ(contract::fraction_ceiling(0.1f, 10), 2u);  // 0.1f is above a tenth
  EXPECT_EQ(contract::fraction_ceiling(0.9f, 10), 9u);  // 0.9f is below nine tenths
  EXPECT_EQ(contract::fraction_ceiling(1e-45f, uint64_t{1} << 60), 1u);
  EXPECT_EQ(contract::fraction_ceiling(0x1p-40f, (uint64_t{1} << 60) + 1), (1u << 20) + 1);
}

TEST(FractionCeiling, BracketsTheProduct) {
  RandomData random;
  for (int i = 0; i < 10000; i++) {
    const float fraction = static_cast<float>(random.between(1, 1 << 24)) * 0x1p-24f;
    const uint64_t total = random.bits() >> random.between(4, 40);
    const contract::uint128 ceiling = contract::fraction_ceiling(fraction, total);
    const auto numerator = static_cast<uint64_t>(fraction * 0x1p24f);
    const contract::uint128 product = static_cast<contract::uint128>(numerator) * total;
    EXPECT_TRUE(ceiling << 24 >= product && (ceiling == 0 || (ceiling - 1) << 24 < product))
        << random.describe() << " fraction " << fraction << " total " << total;
  }
}

TEST(DrawTarget, CoversExactlyTheTotal) {
  EXPECT_EQ(contract::draw_target(0, 7), 0u);
  EXPECT_EQ(contract::draw_target(~uint64_t{0}, 7), 6u);
  EXPECT_EQ(contract::draw_target(uint64_t{1} << 63, uint64_t{1} << 58), uint64_t{1} << 57);
}

TEST(TokenWeight, IsAnIntegerOfFortyBits) {
  EXPECT_EQ(contract::token_weight(3.0f, 3.0f), uint64_t{1} << 40);
  EXPECT_EQ(contract::token_weight(-100.0f, 3.0f), 0u);
  EXPECT_NEAR(static_cast<double>(contract::token_weight(1.0f, 2.0f)), std::exp(-1.0) * 0x1p40,
              0x1p18);
}

TEST(Truncation, TopKKeepsTheFirstOfTheOrder) {
  const std::vector<float> z = {1, 3, 2, 3, 0, 3};
  EXPECT_EQ(kept_ids(z, {.top_k = 1}), (std::vector<int>{1}));
  EXPECT_EQ(kept_ids(z, {.top_k = 2}), (std::vector<int>{1, 3}));
  EXPECT_EQ(kept_ids(z, {.top_k = 4}), (std::vector<int>{1, 2, 3, 5}));
  EXPECT_EQ(kept_ids(z, {.top_k = 0}).size(), 6u);
  EXPECT_EQ(kept_ids(z, {.top_k = 100}).size(), 6u);
}

TEST(Truncation, TopPKeepsTheShortestPrefixThatReachesIt) {
  const std::vector<float> z = {0, 0, 0, 0};  // a quarter each, exactly
  EXPECT_EQ(kept_ids(z, {.top_p = 0.5f}), (std::vector<int>{0, 1}));
  EXPECT_EQ(kept_ids(z, {.top_p = 0.50001f}), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(kept_ids(z, {.top_p = 0.25f}), (std::vector<int>{0}));
  EXPECT_EQ(kept_ids(z, {.top_p = 1e-30f}), (std::vector<int>{0}));
  EXPECT_EQ(kept_ids(z, {.top_p = 1.0f}).size(), 4u);
}

TEST(Truncation, TopPLooksAtWhatTopKKept) {
  const std::vector<float> z = {0, 0, 0, 0};
  EXPECT_EQ(kept_ids(z, {.top_k = 2, .top_p = 0.5f}), (std::vector<int>{0}));
}

TEST(Truncation, MinPComparesWithTheLargestWeight) {
  const float ln2 = 0.6931472f;
  const std::vector<float> z = {5.0f, 5.0f - ln2 - 0.001f, 5.0f - ln2 + 0.001f, 5.0f};
  EXPECT_EQ(kept_ids(z, {.min_p = 0.5f}), (std::vector<int>{0, 2, 3}));
  EXPECT_EQ(kept_ids(z, {.min_p = 1.0f}), (std::vector<int>{0, 3}));
}

TEST(Sample, GreedyTakesTheLowestIdOnATie) {
  const auto outcome = sample(logits_of({1, 4, 4, 2}), {.temperature = 0.0f});
  EXPECT_EQ(outcome.token, 1);
  EXPECT_EQ(outcome.processed_logprob, 0.0f);
  EXPECT_EQ(float_bits(outcome.logprob),
            float_bits(reference::target_logprob(logits_of({1, 4, 4, 2}), 1)));
}

TEST(Sample, RefusesRowsThatAreNotFinite) {
  constexpr uint16_t kBad[] = {0x7f80, 0xff80, 0x7fc0, 0xffff};
  for (const uint16_t bad : kBad) {
    auto logits = logits_of({1, 2, 3, 4});
    logits[2] = bad;
    for (const float temperature : {0.0f, 1.0f})
      EXPECT_EQ(sample(logits, {.temperature = temperature}).token, -1) << bad;
    EXPECT_TRUE(std::isnan(reference::target_logprob(logits, 0))) << bad;
  }
  // Finite logits that a tiny temperature carries out of range are no distribution either.
  EXPECT_EQ(sample(logits_of({1, 200}), {.temperature = 1e-38f}).token, -1);
}

TEST(Sample, ProcessedEqualsRawWithoutTruncation) {
  RandomData random;
  for (int i = 0; i < 50; i++) {
    const auto logits = random.bf16s(DataKind::normal, 2056);
    const auto outcome = sample(logits, {.seed = 9, .position = i});
    ASSERT_GE(outcome.token, 0);
    EXPECT_EQ(float_bits(outcome.logprob), float_bits(outcome.processed_logprob));
    EXPECT_EQ(float_bits(outcome.logprob),
              float_bits(reference::target_logprob(logits, outcome.token)));
  }
}

TEST(Sample, ProcessedIsLogSoftmaxOfTheMaskedRow) {
  RandomData random;
  const SampleRow row{
      .seed = 3, .position = 5, .temperature = 0.7f, .top_k = 50, .top_p = 0.9f, .min_p = 0.02f};
  const auto logits = random.bf16s(DataKind::normal, 4096);
  const auto outcome = sample(logits, row);
  std::vector<float> z;
  for (const uint16_t logit : logits)
    z.push_back(contract::tempered_logit(bf16_to_float(logit), 0.7f));
  const auto kept = kept_tokens(z, row);
  ASSERT_GE(outcome.token, 0);
  EXPECT_TRUE(kept[static_cast<size_t>(outcome.token)]);
  for (size_t i = 0; i < z.size(); i++)
    if (!kept[i]) z[i] = -std::numeric_limits<float>::infinity();
  const auto logprobs = reference::log_softmax(z);
  EXPECT_EQ(float_bits(outcome.processed_logprob),
            float_bits(logprobs[static_cast<size_t>(outcome.token)]));
  EXPECT_GT(outcome.processed_logprob, outcome.logprob);
}

// 40,000 draws: the count of each token within five standard deviations of its expectation.
TEST(Sample, FrequenciesFollowTheDistribution) {
  const std::vector<float> values = {0, 1, 2, 3, -1, 0.5f, 2.5f, -30};
  const auto logits = logits_of(values);
  double total = 0;
  for (const float value : values) total += std::exp(static_cast<double>(value));
  constexpr int kDraws = 40000;
  std::vector<int> counts(values.size());
  for (int i = 0; i < kDraws; i++) {
    const auto outcome = sample(
        logits, {.seed = 1, .sample_index = static_cast<uint32_t>(i % 8), .position = i / 8});
    counts[static_cast<size_t>(outcome.token)]++;
  }
  for (size_t i = 0; i < values.size(); i++) {
    const double p = std::exp(static_cast<double>(values[i])) / total;
    const double deviation = std::sqrt(kDraws * p * (1 - p));
    EXPECT_NEAR(counts[i], kDraws * p, 5 * deviation + 1) << "token " << i;
  }
}

TEST(Sample, DependsOnSeedSampleAndPositionAlone) {
  RandomData random;
  const auto logits = random.bf16s(DataKind::normal, 512);
  const SampleRow row{.row = 0, .seed = 5, .sample_index = 2, .position = 9};
  SampleRow elsewhere = row;
  elsewhere.row = 17;
  EXPECT_EQ(sample(logits, row).token, sample(logits, elsewhere).token);
  int changed = 0;
  for (int32_t position = 10; position < 40; position++) {
    SampleRow other = row;
    other.position = position;
    changed += sample(logits, other).token != sample(logits, row).token;
  }
  EXPECT_GT(changed, 20);
}

}  // namespace
}  // namespace exact
