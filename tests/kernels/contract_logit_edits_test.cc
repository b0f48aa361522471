// Rule N9 before the temperature and beside the token: each edit's operations and their order,
// masks, forced tokens and reports, on rows whose answer is known.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/logit_edits.h"
#include "kernels/contract/sampling.h"
#include "kernels/reference/reference.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"

namespace exact {
namespace {

using contract::edited_logit;
using reference::sample;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<uint16_t> logits_of(const std::vector<float>& values) {
  std::vector<uint16_t> logits;
  for (const float value : values) logits.push_back(float_to_bf16(value));
  return logits;
}

uint32_t bits_of(float value) {
  return float_bits(value);
}

TEST(EditedLogit, RepetitionDividesByAReciprocalProduct) {
  const contract::Penalties penalties{.repetition = 1.3f};
  const LogitEdit seen{.token = 0, .seen = true};
  int from_a_division = 0;
  for (int i = 1; i < 1000; i++) {
    const float x = 0.125f * static_cast<float>(i);
    EXPECT_EQ(bits_of(edited_logit(x, seen, penalties)), bits_of(x * (1.0f / 1.3f)));
    EXPECT_EQ(bits_of(edited_logit(-x, seen, penalties)), bits_of(-x * 1.3f));
    from_a_division += bits_of(x / 1.3f) != bits_of(x * (1.0f / 1.3f)) ? 1 : 0;
  }
  EXPECT_GT(from_a_division, 30);  // it is not the same thing
  EXPECT_EQ(edited_logit(5.0f, {.token = 0, .count = 0}, penalties), 5.0f);
}

TEST(EditedLogit, EachOperationIsRoundedInOrder) {
  const contract::Penalties penalties{.repetition = 1.1f, .presence = 0.3f, .frequency = 0.7f};
  const LogitEdit edit{.token = 3, .count = 3, .seen = true, .bias = 0.21f};
  const float repeated = 2.5f * (1.0f / 1.1f);
  const float product = 0.7f * 3.0f;
  const float frequent = repeated - product;
  const float present = frequent - 0.3f;
  EXPECT_EQ(bits_of(edited_logit(2.5f, edit, penalties)), bits_of(present + 0.21f));
}

TEST(EditedLogit, PresenceIsOfTheOutputAlone) {
  const contract::Penalties penalties{.presence = 4.0f, .frequency = 1.0f};
  EXPECT_EQ(edited_logit(1.0f, {.token = 0, .count = 0, .seen = true}, penalties), 1.0f);
  EXPECT_EQ(edited_logit(1.0f, {.token = 0, .count = 1, .seen = true}, penalties), -4.0f);
  EXPECT_EQ(edited_logit(1.0f, {.token = 0, .count = 5, .seen = true}, penalties), -8.0f);
}

// A greedy row of one detail: what is taken.
SampleOutcome take(const std::vector<float>& values, SampleDetail detail, SampleRow row = {}) {
  row.detail = &detail;
  return sample(logits_of(values), row);
}

TEST(DetailedSample, GreedyTakesTheLargestEditedLogitOfTheAllowed) {
  const SampleRow greedy{.temperature = 0.0f};
  const std::vector<float> x = {1, 4, 4, 2};
  const std::vector<LogitEdit> biased = {{.token = 3, .bias = 2.0f}};
  EXPECT_EQ(take(x, {}, greedy).token, 1);
  EXPECT_EQ(take(x, {.edits = biased}, greedy).token, 1);  // three tie: the lowest id
  const std::vector<uint32_t> mask = {0b1101};
  EXPECT_EQ(take(x, {.edits = biased, .allowed = mask}, greedy).token, 2);
  const std::vector<uint32_t> last = {0b1000};
  const auto outcome = take(x, {.allowed = last}, greedy);
  EXPECT_EQ(outcome.token, 3);
  EXPECT_EQ(outcome.processed_logprob, 0.0f);
  EXPECT_EQ(bits_of(outcome.logprob), bits_of(reference::target_logprob(logits_of(x), 3)));
}

TEST(DetailedSample, ProcessedIsOfTheEditedRowAndRawIsNot) {
  const std::vector<float> x = {0, 1, 2, 3, 4, 5, 6, 7};
  const std::vector<LogitEdit> edits = {{.token = 2, .count = 2, .seen = true, .bias = 9.0f},
                                        {.token = 7, .count = 0, .seen = true}};
  const std::vector<uint32_t> mask = {0b11101110};
  const SampleDetail detail{.repetition_penalty = 1.5f,
                            .presence_penalty = 0.25f,
                            .frequency_penalty = 0.5f,
                            .edits = edits,
                            .allowed = mask};
  std::vector<float> z = x;
  z[2] = (((2.0f * (1.0f / 1.5f)) - 0.5f * 2.0f) - 0.25f) + 9.0f;
  z[7] = 7.0f * (1.0f / 1.5f);
  for (float& value : z) value = value * (1.0f / 0.7f);
  z[0] = z[4] = -kInfinity;
  const auto processed = reference::log_softmax(z);
  for (int32_t position = 0; position < 200; position++) {
    const auto outcome = take(x, detail, {.seed = 3, .position = position, .temperature = 0.7f});
    ASSERT_GE(outcome.token, 0);
    ASSERT_NE(outcome.token, 0);
    ASSERT_NE(outcome.token, 4);
    const auto token = static_cast<size_t>(outcome.token);
    EXPECT_EQ(bits_of(outcome.processed_logprob), bits_of(processed[token]));
    EXPECT_EQ(bits_of(outcome.logprob),
              bits_of(reference::target_logprob(logits_of(x), outcome.token)));
  }
}

TEST(DetailedSample, NothingAllowedDrawsAndReportsNothing) {
  std::vector<int32_t> top_ids(2), kept = {5};
  std::vector<float> top_logprobs(2);
  float entropy = 0;
  const std::vector<uint32_t> none = {0};
  for (const float temperature : {0.0f, 1.0f}) {
    const auto outcome = take({1, 2, 3},
                              {.allowed = none,
                               .forced_token = 1,
                               .top_ids = top_ids,
                               .top_logprobs = top_logprobs,
                               .kept_ids = &kept,
                               .entropy = &entropy},
                              {.temperature = temperature});
    EXPECT_EQ(outcome.token, -1);
    EXPECT_EQ(top_ids, (std::vector<int32_t>{-1, -1}));
    EXPECT_EQ(bits_of(top_logprobs[1]), 0x7fffffffu);
    EXPECT_EQ(bits_of(entropy), 0x7fffffffu);
    EXPECT_TRUE(kept.empty());
  }
}

TEST(DetailedSample, AnEditThatOverflowsDrawsNothing) {
  const std::vector<LogitEdit> edits = {{.token = 1, .bias = 3e38f}};
  const std::vector<uint32_t> mask = {0b01};  // even where the token is not allowed
  EXPECT_EQ(take({1, 3e38f}, {.edits = edits}).token, -1);
  EXPECT_EQ(take({1, 3e38f}, {.edits = edits, .allowed = mask}).token, -1);
  EXPECT_EQ(take({1, 3e38f}, {.edits = edits}, {.temperature = 0.0f}).token, -1);
  // A tempered logit that overflows matters where the token may be drawn.
  EXPECT_EQ(take({1, 3e38f}, {}, {.temperature = 0.1f}).token, -1);
  EXPECT_EQ(take({1, 3e38f}, {.allowed = mask}, {.temperature = 0.1f}).token, 0);
}

TEST(DetailedSample, AForcedTokenHasItsTrueLogProbabilities) {
  const std::vector<float> x = {0, 1, 2, 3};
  const auto raw = [&](int32_t token) { return reference::target_logprob(logits_of(x), token); };
  for (int32_t token = 0; token < 4; token++) {
    const auto greedy = take(x, {.forced_token = token}, {.temperature = 0.0f});
    EXPECT_EQ(greedy.token, token);
    EXPECT_EQ(bits_of(greedy.logprob), bits_of(raw(token)));
    EXPECT_EQ(greedy.processed_logprob, token == 3 ? 0.0f : -kInfinity);
    const auto all = take(x, {.forced_token = token});
    EXPECT_EQ(bits_of(all.processed_logprob), bits_of(raw(token)));
    const auto some = take(x, {.forced_token = token}, {.top_k = 2});
    EXPECT_EQ(some.processed_logprob == -kInfinity, token < 2);
  }
}

TEST(DetailedSample, KeptIdsAreWhatMasksAndFiltersKeep) {
  const std::vector<float> x = {5, 9, 1, 9, 7, -90, 3, 8};
  std::vector<int32_t> kept;
  const auto kept_of = [&](SampleRow row, std::vector<uint32_t> mask) {
    EXPECT_GE(take(x, {.allowed = mask, .kept_ids = &kept}, row).token, 0);
    return kept;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(kept_of({}, {}), (Ids{0, 1, 2, 3, 4, 5, 6, 7}));  // 5 has no weight, and is kept
  EXPECT_EQ(kept_of({.top_k = 3}, {}), (Ids{1, 3, 7}));
  EXPECT_EQ(kept_of({.top_k = 3}, {0b11110101}), (Ids{0, 4, 7}));
  EXPECT_EQ(kept_of({.top_k = 3}, {0b00100001}), (Ids{0, 5}));
  EXPECT_EQ(kept_of({.top_p = 0.3f}, {}), (Ids{1}));
  EXPECT_EQ(kept_of({.min_p = 0.3f}, {}), (Ids{1, 3, 7}));
  EXPECT_EQ(kept_of({.temperature = 0.0f}, {}), (Ids{1}));
}

// The stable descending sort and the entropy of stock PyTorch, reported beside a token.
TEST(DetailedSample, TopIdsAreThoseOfThePyTorchGolden) {
  constexpr size_t kRows = 8, kVocabulary = 32000, kTop = 64;
  const GoldenFile golden("ops2.safetensors");
  const auto logits = hash_bf16("temp.logits", 2, kRows * kVocabulary, -12, 12);
  const auto want = golden.values<int32_t>("argsort_top64");
  for (size_t r = 0; r < kRows; r++) {
    const auto row_logits = std::span(logits).subspan(r * kVocabulary, kVocabulary);
    std::vector<int32_t> ids(kTop);
    std::vector<float> logprobs(kTop);
    const SampleDetail detail{.top_ids = ids, .top_logprobs = logprobs};
    SampleRow row;
    row.detail = &detail;
    ASSERT_GE(sample(row_logits, row).token, 0);
    ASSERT_BITS_EQ(ids, std::span(want).subspan(r * kTop, kTop), "row " + std::to_string(r));
    for (size_t k = 0; k < kTop; k += 9) {
      EXPECT_EQ(bits_of(logprobs[k]), bits_of(reference::target_logprob(row_logits, ids[k])));
    }
  }
}

TEST(DetailedSample, ADetailOfNothingChangesNothing) {
  const auto logits = hash_bf16("detail.nothing", 1, 2048, -6, 6);
  for (int32_t position = 0; position < 20; position++) {
    SampleRow row{.seed = 1, .position = position, .temperature = 0.8f, .top_k = 50, .top_p = 0.9f};
    const auto plain = sample(logits, row);
    const SampleDetail nothing;
    row.detail = &nothing;
    const auto detailed = sample(logits, row);
    EXPECT_EQ(plain.token, detailed.token);
    EXPECT_EQ(bits_of(plain.processed_logprob), bits_of(detailed.processed_logprob));
  }
}

}  // namespace
}  // namespace exact
