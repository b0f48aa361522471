// Rows with edits, masks, forced tokens and reports on the CPU backend against the literal rules:
// every field at random, adversarial rows, and rows that share their logits.
#include <deque>

#include "kernels/contract/logit_edits.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/cpu_test_support.h"
#include "tests/support/random_samples.h"

namespace exact {
namespace {

class CpuDetailedSample : public CpuIsaTest {
 protected:
  // `rows` name their logits; row r has the details details[r], if there are any.
  void check(const std::vector<uint16_t>& logits, int64_t vocabulary, std::vector<SampleRow> rows,
             std::deque<DetailCase>& details, const std::string& where) {
    std::deque<DetailCase> wanted;
    std::vector<SampleOutcome> want, got(rows.size());
    for (size_t r = 0; r < rows.size(); r++) {
      wanted.emplace_back(details[r]);
      rows[r].detail = &wanted.back().detail();
      want.push_back(
          reference::sample(std::span(logits).subspan(static_cast<size_t>(rows[r].row * vocabulary),
                                                      static_cast<size_t>(vocabulary)),
                            rows[r]));
      rows[r].detail = &details[r].detail();
    }
    const auto count = static_cast<int64_t>(logits.size()) / vocabulary;
    backend_->sample(host_view(logits, count, vocabulary), rows, got);
    ASSERT_TRUE(backend_->finish().is_ok());
    for (size_t r = 0; r < rows.size(); r++) {
      const std::string at = where + ", V " + std::to_string(vocabulary) + ", row " +
                             std::to_string(r) + ": T " + std::to_string(rows[r].temperature) +
                             ", top-k " + std::to_string(rows[r].top_k) + ", top-p " +
                             std::to_string(rows[r].top_p) + ", min-p " +
                             std::to_string(rows[r].min_p) + ", " + details[r].describe();
      drawn_ += want[r].token >= 0 ? 1 : 0;
      nothing_ += want[r].token >= 0 ? 0 : 1;
      ASSERT_EQ(got[r].token, want[r].token) << at;
      ASSERT_EQ(hex_of(got[r].logprob), hex_of(want[r].logprob)) << at;
      ASSERT_EQ(hex_of(got[r].processed_logprob), hex_of(want[r].processed_logprob)) << at;
      ASSERT_EQ(details[r].difference(wanted[r]), "") << at;
    }
  }

  void check_random(RandomData& data, int64_t vocabulary, int64_t row_count) {
    std::vector<uint16_t> logits;
    std::vector<SampleRow> rows;
    std::deque<DetailCase> details;
    const int64_t logit_rows = (row_count + 1) / 2;  // each is drawn from twice or so
    for (int64_t r = 0; r < logit_rows; r++) {
      const auto row = random_logit_row(data, vocabulary);
      logits.insert(logits.end(), row.begin(), row.end());
    }
    for (int64_t r = 0; r < row_count; r++) {
      rows.push_back(random_sample_row(data, vocabulary));
      rows.back().row = data.between(0, logit_rows - 1);
      details.emplace_back(data, vocabulary);
    }
    check(logits, vocabulary, std::move(rows), details, data.describe());
  }

  int64_t drawn_ = 0, nothing_ = 0;
};

TEST_P(CpuDetailedSample, RandomDetailsHaveTheBitsOfTheReference) {
  RandomData data(300);
  for (const int64_t vocabulary : {32, 40, 1000, 2048, 2056, 9216, 9224, 12256, 20008}) {
    check_random(data, vocabulary, vocabulary > 5000 ? 24 : 80);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(drawn_, 300);
  EXPECT_GT(nothing_, 0);
}

TEST_P(CpuDetailedSample, RandomSmallVocabularies) {
  RandomData data(301);
  for (int i = 0; i < 60; i++) {
    check_random(data, 8 * data.between(4, 60), 40);
    if (HasFatalFailure()) return;
  }
}

TEST_P(CpuDetailedSample, ALargeVocabulary) {
  RandomData data(302);
  check_random(data, 151936, 8);
}

// A row with details beside plain ones, in one call: the plain ones do not change.
TEST_P(CpuDetailedSample, PlainRowsBesideDetailedOnes) {
  RandomData data(303);
  constexpr int64_t kVocabulary = 3000;
  const auto logits = random_logit_row(data, kVocabulary);
  std::vector<SampleRow> rows;
  std::deque<DetailCase> details;
  for (int r = 0; r < 12; r++) rows.push_back(random_sample_row(data, kVocabulary));
  std::vector<SampleOutcome> alone(rows.size()), mixed(rows.size());
  backend_->sample(host_view(logits, 1, kVocabulary), rows, alone);
  for (size_t r = 0; r < rows.size(); r += 2) {
    details.emplace_back(data, kVocabulary);
    rows[r].detail = &details.back().detail();
  }
  backend_->sample(host_view(logits, 1, kVocabulary), rows, mixed);
  for (size_t r = 1; r < rows.size(); r += 2) {
    EXPECT_EQ(mixed[r].token, alone[r].token) << "row " << r;
    EXPECT_EQ(hex_of(mixed[r].processed_logprob), hex_of(alone[r].processed_logprob)) << r;
  }
}

TEST_P(CpuDetailedSample, ARawLogitThatIsNotFiniteReportsNothing) {
  RandomData data(304);
  for (const uint16_t bad : std::initializer_list<uint16_t>{0x7f80, 0xff80, 0x7fc0}) {
    std::vector<SampleRow> rows;
    std::deque<DetailCase> details;
    auto logits = random_logit_row(data, 2056);
    logits[77] = bad;
    for (int r = 0; r < 12; r++) {
      rows.push_back(random_sample_row(data, 2056));
      details.emplace_back(data, 2056);
    }
    check(logits, 2056, std::move(rows), details, data.describe());
  }
  EXPECT_EQ(drawn_, 0);
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuDetailedSample, testing::ValuesIn(kAllIsas), isa_test_name);

}  // namespace
}  // namespace exact
