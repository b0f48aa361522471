// Draws have the probabilities that they claim, and are independent of each other. The draws are
// the same on every run, so a test here passes always or never; the bounds say how unlikely a
// failure of right code was when the seed was chosen.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/sampling.h"
#include "kernels/base/bf16.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact {
namespace {

constexpr int32_t kVocabulary = 40;
// A tenth of them under a sanitizer, which slows a draw down tenfold.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t kDraws = 100'000;
#else
constexpr int64_t kDraws = 1'000'000;
#endif
constexpr int64_t kBatch = 50'000;  // of draws that are held at once

// Logits from 3 downwards in no particular order of ids, all apart: 7 and 40 have no common factor.
std::vector<uint16_t> make_logits() {
  std::vector<uint16_t> logits(kVocabulary);
  for (int32_t i = 0; i < kVocabulary; i++) {
    logits[static_cast<size_t>(i)] =
        float_to_bf16(3.0f - 0.125f * static_cast<float>(i * 7 % kVocabulary));
  }
  return logits;
}

// The logits after penalties and biases, in double; -inf for a token that a mask drops.
std::vector<double> edited_logits(const std::vector<uint16_t>& logits, const SampleRow& row) {
  std::vector<double> x(logits.size());
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<double>(bf16_to_float(logits[i]));
  if (row.detail == nullptr) return x;
  const SampleDetail& detail = *row.detail;
  const double repetition = detail.repetition_penalty;
  for (const LogitEdit& edit : detail.edits) {
    double& value = x[static_cast<size_t>(edit.token)];
    if (edit.seen) value = value < 0 ? value * repetition : value / repetition;
    value -= static_cast<double>(detail.frequency_penalty) * edit.count;
    if (edit.count > 0) value -= static_cast<double>(detail.presence_penalty);
    value += static_cast<double>(edit.bias);
  }
  for (size_t i = 0; i < x.size() && !detail.allowed.empty(); i++) {
    if ((detail.allowed[i / 32] >> (i % 32) & 1u) == 0) x[i] = -INFINITY;
  }
  return x;
}

// softmax(edited logits / T) in double, cut by top-k, then top-p, then min-p, and renormalised.
std::vector<double> exact_probabilities(const std::vector<uint16_t>& logits, const SampleRow& row) {
  std::vector<double> p = edited_logits(logits, row);
  for (double& value : p) value = std::exp(value / row.temperature);
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  size_t count = row.top_k == 0 ? p.size() : std::min(p.size(), static_cast<size_t>(row.top_k));
  double total = 0;
  for (size_t i = 0; i < count; i++) total += p[order[i]];
  double running = 0;
  for (size_t i = 0; i < count && row.top_p < 1.0f; i++) {
    running += p[order[i]];
    if (running >= static_cast<double>(row.top_p) * total) count = i + 1;
  }
  while (count > 0 && p[order[count - 1]] < static_cast<double>(row.min_p) * p[order[0]]) count--;
  std::vector<double> out(p.size(), 0.0);
  for (size_t i = 0; i < count; i++) out[order[i]] = p[order[i]];
  const double sum = std::accumulate(out.begin(), out.end(), 0.0);
  for (double& value : out) value /= sum;
  return out;
}

// Pearson's statistic over cells with an expectation of 10 at least (the rest are one cell), made
// normal by Wilson and Hilferty's cube root: standard deviations above what right code gives.
// Beyond 5 lie 3e-7 of a normal distribution.
double chi_square_deviation(const std::vector<int64_t>& counts, const std::vector<double>& p) {
  const auto draws = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double statistic = 0, rest_counted = 0, rest_expected = 0;
  int cells = 0;
  const auto add_cell = [&](double counted, double expected) {
    statistic += (counted - expected) * (counted - expected) / expected;
    cells++;
  };
  for (size_t i = 0; i < p.size(); i++) {
    const double expected = p[i] * draws;
    const auto counted = static_cast<double>(counts[i]);
    if (expected >= 10) {
      add_cell(counted, expected);
    } else {
      rest_counted += counted;
      rest_expected += expected;
    }
  }
  if (rest_expected > 1) add_cell(rest_counted, rest_expected);
  const double freedom = cells - 1;
  const double variance = 2 / (9 * freedom);
  return (std::cbrt(statistic / freedom) - (1 - variance)) / std::sqrt(variance);
}

constexpr double kMostDeviation = 5.0;

class SamplingStatistics : public testing::Test {
 protected:
  void SetUp() override {
    auto backend = make_cpu_backend();
    ASSERT_TRUE(backend.is_ok()) << backend.status().to_string();
    backend_ = std::move(backend).value();
    auto buffer = backend_->allocate(kVocabulary * 2);
    ASSERT_TRUE(buffer.is_ok());
    buffer_ = std::move(buffer).value();
    upload(make_logits());
  }

  void upload(const std::vector<uint16_t>& logits) {
    logits_ = logits;
    backend_->upload(view(), std::as_bytes(std::span(logits_)));
  }

  TensorView view() { return buffer_.view(DType::bf16, 1, kVocabulary); }

  // Draw d has the row that `place` makes of `base`.
  std::vector<SampleOutcome> draw(SampleRow base, int64_t count,
                                  const std::function<void(SampleRow&, int64_t)>& place) {
    std::vector<SampleRow> rows(static_cast<size_t>(count), base);
    for (size_t d = 0; d < rows.size(); d++) place(rows[d], static_cast<int64_t>(d));
    std::vector<SampleOutcome> outcomes(rows.size());
    backend_->sample(view(), rows, outcomes);
    const Status status = backend_->finish();
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    return outcomes;
  }

  static void by_position(SampleRow& row, int64_t d) { row.position = static_cast<int32_t>(d); }
  static void by_sample(SampleRow& row, int64_t d) { row.sample_index = static_cast<uint32_t>(d); }
  static void by_seed(SampleRow& row, int64_t d) { row.seed = static_cast<uint64_t>(d); }
  static void by_high_seed(SampleRow& row, int64_t d) { row.seed = static_cast<uint64_t>(d) << 32; }

  // Frequencies, the kept set, and the log-probabilities that come with each draw.
  void expect_exact(const SampleRow& row, const std::string& what,
                    const std::function<void(SampleRow&, int64_t)>& place = by_position) {
    const std::vector<double> p = exact_probabilities(logits_, row);
    SampleRow plain = row;
    plain.temperature = 1.0f, plain.top_k = 0, plain.top_p = 1.0f, plain.min_p = 0.0f;
    plain.detail = nullptr;
    const std::vector<double> raw = exact_probabilities(logits_, plain);
    std::vector<int64_t> counts(kVocabulary, 0);
    for (int64_t first = 0; first < kDraws; first += kBatch) {
      const auto outcomes =
          draw(row, kBatch, [&](SampleRow& drawn, int64_t d) { place(drawn, first + d); });
      for (const SampleOutcome& outcome : outcomes) {
        ASSERT_GE(outcome.token, 0) << what;
        const auto token = static_cast<size_t>(outcome.token);
        ASSERT_GT(p[token], 0.0) << what << ": token " << token << " was cut off";
        // Sums of 40 fp32 terms, log-probabilities of size below 32: an error below
        // 40 * 32 * 2^-24.
        ASSERT_NEAR(outcome.logprob, std::log(raw[token]), 1e-4) << what;
        ASSERT_NEAR(outcome.processed_logprob, std::log(p[token]), 1e-4) << what;
        counts[token]++;
      }
    }
    EXPECT_LT(chi_square_deviation(counts, p), kMostDeviation) << what;
  }

  std::unique_ptr<Backend> backend_;
  Buffer buffer_;
  std::vector<uint16_t> logits_;
};

TEST_F(SamplingStatistics, EveryCounterGivesTheSoftmax) {
  expect_exact({.seed = 11}, "by position", by_position);
  expect_exact({.seed = 12, .position = 9}, "by sample", by_sample);
  expect_exact({.position = 5}, "by seed", by_seed);
  expect_exact({.position = 5}, "by the seed's upper half", by_high_seed);
}

TEST_F(SamplingStatistics, TemperatureSharpensAndFlattens) {
  expect_exact({.seed = 21, .temperature = 0.5f}, "T 0.5");
  expect_exact({.seed = 22, .temperature = 3.0f}, "T 3");
}

TEST_F(SamplingStatistics, FiltersKeepTheirTokensAndRenormalise) {
  expect_exact({.seed = 31, .top_k = 7}, "top-k 7");
  expect_exact({.seed = 32, .top_p = 0.8f}, "top-p 0.8");
  expect_exact({.seed = 33, .min_p = 0.17f}, "min-p 0.17");
  expect_exact({.seed = 34, .temperature = 1.5f, .top_k = 25, .top_p = 0.9f, .min_p = 0.05f},
               "all of them");
}

// Some tokens of a prompt, of the output and of neither, likely ones and unlikely ones.
const std::vector<LogitEdit> kEdits = {{.token = 0, .seen = true},
                                       {.token = 3, .count = 2, .seen = true},
                                       {.token = 17, .count = 5, .seen = true, .bias = 0.5f},
                                       {.token = 23, .count = 1, .seen = true},
                                       {.token = 29, .bias = -1.5f},
                                       {.token = 39, .bias = 2.5f}};

TEST_F(SamplingStatistics, EditedLogitsAreDrawnFrom) {
  const SampleDetail repetition{.repetition_penalty = 1.7f, .edits = kEdits};
  expect_exact({.seed = 61, .detail = &repetition}, "repetition and biases");
  const SampleDetail counted{
      .presence_penalty = 0.75f, .frequency_penalty = -0.3f, .edits = kEdits};
  expect_exact({.seed = 62, .detail = &counted}, "presence and frequency");
}

TEST_F(SamplingStatistics, MaskedTokensAreNotDrawn) {
  const std::vector<uint32_t> mask = {0x5a5af00fu, 0x0000000fu};
  const SampleDetail masked{.allowed = mask};
  expect_exact({.seed = 63, .detail = &masked}, "a mask");
  const SampleDetail all{.repetition_penalty = 1.3f,
                         .presence_penalty = 0.2f,
                         .frequency_penalty = 0.1f,
                         .edits = kEdits,
                         .allowed = mask};
  expect_exact({.seed = 64,
                .temperature = 0.8f,
                .top_k = 12,
                .top_p = 0.93f,
                .min_p = 0.02f,
                .detail = &all},
               "everything at once");
}

TEST_F(SamplingStatistics, ATopKOfTheVocabularyOrMoreIsOff) {
  const auto off = draw({.seed = 41}, 1000, by_position);
  for (const int32_t top_k : {kVocabulary, kVocabulary + 1, INT32_MAX}) {
    const auto on = draw({.seed = 41, .top_k = top_k}, 1000, by_position);
    for (size_t i = 0; i < on.size(); i++) {
      ASSERT_EQ(on[i].token, off[i].token);
      ASSERT_EQ(on[i].processed_logprob, off[i].processed_logprob);
    }
  }
}

TEST_F(SamplingStatistics, OneTokenKeptIsCertain) {
  const SampleRow cases[] = {{.temperature = 0.0f}, {.top_k = 1}, {.top_p = 1e-30f}};
  for (const SampleRow& row : cases) {
    for (const SampleOutcome& outcome : draw(row, 1000, by_position)) {
      ASSERT_EQ(outcome.token, 0);
      ASSERT_EQ(outcome.processed_logprob, 0.0f);
    }
  }
}

TEST_F(SamplingStatistics, TiesGoToTheLowestId) {
  std::vector<uint16_t> logits(kVocabulary, float_to_bf16(0.0f));
  logits[5] = logits[9] = logits[30] = float_to_bf16(2.0f);
  upload(logits);
  for (const SampleOutcome& outcome : draw({.temperature = 0.0f}, 10, by_position)) {
    ASSERT_EQ(outcome.token, 5);
  }
  bool saw_nine = false;
  for (const SampleOutcome& outcome : draw({.top_k = 2}, 1000, by_position)) {
    ASSERT_TRUE(outcome.token == 5 || outcome.token == 9) << outcome.token;
    saw_nine = saw_nine || outcome.token == 9;
  }
  EXPECT_TRUE(saw_nine);
}

TEST_F(SamplingStatistics, ALogitThatIsNotFiniteDrawsNothing) {
  for (const uint16_t bad : {uint16_t{0x7fc0}, uint16_t{0x7f80}, uint16_t{0xff80}}) {
    std::vector<uint16_t> logits = make_logits();
    logits[17] = bad;
    upload(logits);
    for (const SampleRow& row : {SampleRow{}, SampleRow{.temperature = 0.0f}}) {
      EXPECT_EQ(draw(row, 1, by_position)[0].token, -1);
    }
  }
}

// Neighbouring draws - the next position, the next sample, the next seed - share nothing: each pair
// of tokens is as frequent as the product of their probabilities.
TEST_F(SamplingStatistics, NeighbouringDrawsAreIndependent) {
  const SampleRow base{.seed = 77, .top_k = 8};
  const std::vector<double> p = exact_probabilities(logits_, base);
  std::vector<double> pair_p;
  for (const double a : p) {
    for (const double b : p) pair_p.push_back(a * b);
  }
  const std::function<void(SampleRow&, int64_t)> places[] = {by_position, by_sample, by_seed};
  for (size_t which = 0; which < 3; which++) {
    const auto outcomes = draw(base, kDraws / 5, places[which]);
    std::vector<int64_t> counts(pair_p.size(), 0);
    for (size_t d = 0; d + 1 < outcomes.size(); d += 2) {
      counts.at(static_cast<size_t>(outcomes[d].token * kVocabulary + outcomes[d + 1].token))++;
    }
    EXPECT_LT(chi_square_deviation(counts, pair_p), kMostDeviation) << "counter " << which;
  }
}

// Sample i draws the same whatever n is, and whatever its neighbours ask for.
TEST_F(SamplingStatistics, ARowsDrawIgnoresTheRowsBesideIt) {
  const SampleDetail biased{.repetition_penalty = 2.0f, .edits = kEdits};
  for (const SampleDetail* detail : {static_cast<const SampleDetail*>(nullptr), &biased}) {
    const SampleRow base{.seed = 5, .detail = detail};
    const auto many = draw(base, 64, by_sample);
    const auto few = draw(base, 7, by_sample);
    const auto among_others = draw(base, 64, [&](SampleRow& row, int64_t d) {
      by_sample(row, d);
      if (d % 2 == 0)
        row = {.seed = 9, .top_k = 3, .detail = detail == nullptr ? &biased : nullptr};
    });
    for (int64_t d = 0; d < 64; d++) {
      const auto i = static_cast<size_t>(d);
      const auto alone = draw(base, 1, [d](SampleRow& row, int64_t) { by_sample(row, d); });
      ASSERT_EQ(alone[0].token, many[i].token);
      ASSERT_EQ(alone[0].logprob, many[i].logprob);
      ASSERT_EQ(alone[0].processed_logprob, many[i].processed_logprob);
      ASSERT_EQ(d < 7 ? few[i].token : many[i].token, many[i].token);
      ASSERT_EQ(d % 2 == 1 ? among_others[i].token : many[i].token, many[i].token);
    }
  }
}

}  // namespace
}  // namespace exact
