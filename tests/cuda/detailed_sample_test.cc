// detailed_sample_test.cc: rows with edits, masks, forced tokens and reports have the bits of the
// reference on a GPU in every output, alone, in many launches and beside plain rows.
#include <deque>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/reference/reference.h"
#include "tests/cuda/device.h"
#include "tests/support/device_tensor.h"
#include "tests/support/expect_bits.h"
#include "tests/support/random_samples.h"

namespace exact::cuda_test {
namespace {

std::string describe(const SampleRow& row) {
  return "T " + std::to_string(row.temperature) + ", top-k " + std::to_string(row.top_k) +
         ", top-p " + std::to_string(row.top_p) + ", min-p " + std::to_string(row.min_p) +
         ", seed " + std::to_string(row.seed);
}

class DetailedSample : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
    auto backend = make_cuda_backend();
    ASSERT_TRUE(backend.is_ok()) << backend.status().to_string();
    backend_ = std::move(backend).value();
  }

  // What is asked of a matrix of logits. details[r] is of row r; where it is null the row is plain.
  struct Case {
    int64_t vocabulary = 0;
    std::vector<uint16_t> logits;
    std::vector<SampleRow> rows;
    std::vector<std::unique_ptr<DetailCase>> details;

    std::span<const uint16_t> logits_of(const SampleRow& row) const {
      return std::span(logits).subspan(static_cast<size_t>(row.row * vocabulary),
                                       static_cast<size_t>(vocabulary));
    }
  };

  static Case random_case(RandomData& data, int64_t vocabulary, int64_t row_count,
                          bool some_plain) {
    Case made;
    made.vocabulary = vocabulary;
    const int64_t logit_rows = (row_count + 1) / 2;  // each is drawn from twice or so
    for (int64_t r = 0; r < logit_rows; r++) {
      const auto row = random_logit_row(data, vocabulary);
      made.logits.insert(made.logits.end(), row.begin(), row.end());
    }
    for (int64_t r = 0; r < row_count; r++) {
      made.rows.push_back(random_sample_row(data, vocabulary));
      made.rows.back().row = data.between(0, logit_rows - 1);
      const bool plain = some_plain && data.between(0, 1) == 0;
      made.details.push_back(plain ? nullptr : std::make_unique<DetailCase>(data, vocabulary));
    }
    return made;
  }

  void check(Case& made, const std::string& what) {
    std::vector<std::unique_ptr<DetailCase>> wanted;
    std::vector<SampleOutcome> want, got(made.rows.size());
    for (size_t r = 0; r < made.rows.size(); r++) {
      SampleRow& row = made.rows[r];
      wanted.push_back(made.details[r] ? std::make_unique<DetailCase>(*made.details[r]) : nullptr);
      row.detail = wanted[r] ? &wanted[r]->detail() : nullptr;
      want.push_back(reference::sample(made.logits_of(row), row));
      row.detail = made.details[r] ? &made.details[r]->detail() : nullptr;
    }
    const DeviceTensor logits(*backend_, made.logits,
                              static_cast<int64_t>(made.logits.size()) / made.vocabulary,
                              made.vocabulary);
    backend_->sample(logits.view(), made.rows, got);
    const Status status = backend_->finish();
    ASSERT_TRUE(status.is_ok()) << what << ": " << status.to_string();
    for (size_t r = 0; r < made.rows.size(); r++) {
      const std::string where = what + ", V " + std::to_string(made.vocabulary) + ", row " +
                                std::to_string(r) + ": " + describe(made.rows[r]) +
                                (made.details[r] ? ", " + made.details[r]->describe() : ", plain");
      (want[r].token >= 0 ? drawn_ : nothing_)++;
      ASSERT_EQ(got[r].token, want[r].token) << where;
      ASSERT_EQ(hex_of(got[r].logprob), hex_of(want[r].logprob)) << where;
      ASSERT_EQ(hex_of(got[r].processed_logprob), hex_of(want[r].processed_logprob)) << where;
      if (made.details[r]) {
        ASSERT_EQ(made.details[r]->difference(*wanted[r]), "") << where;
      }
    }
  }

  void check_random(RandomData& data, int64_t vocabulary, int64_t row_count,
                    bool some_plain = false) {
    Case made = random_case(data, vocabulary, row_count, some_plain);
    check(made, data.describe());
  }

  std::unique_ptr<Backend> backend_;
  int64_t drawn_ = 0, nothing_ = 0;
};

TEST_F(DetailedSample, RandomDetailsHaveTheBitsOfTheReference) {
  RandomData data(400);
  for (const int64_t vocabulary : {32, 40, 64, 120, 128, 1000, 2040, 2048, 2056, 4096, 8160, 8168,
                                   9216, 9224, 12248, 12256, 12296, 20008, 32000}) {
    check_random(data, vocabulary, vocabulary > 5000 ? 40 : 120);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(drawn_, 1000);
  EXPECT_GT(nothing_, 0);
}

TEST_F(DetailedSample, RandomSmallVocabularies) {
  RandomData data(401);
  for (int i = 0; i < 100; i++) {
    check_random(data, 8 * data.between(4, 80), 60);
    if (HasFatalFailure()) return;
  }
}

// More rows than one launch has, and scratch that grows between calls.
TEST_F(DetailedSample, ManyRowsOfLargeVocabularies) {
  RandomData data(402);
  check_random(data, 4096, 200);
  check_random(data, 151936, 12);
  check_random(data, 128256, 6);
  check_random(data, 1 << 20, 2);
}

TEST_F(DetailedSample, PlainRowsBesideDetailedOnes) {
  RandomData data(403);
  for (const int64_t vocabulary : {1000, 5120, 32000}) {
    check_random(data, vocabulary, 60, true);
    if (HasFatalFailure()) return;
  }
}

TEST_F(DetailedSample, ARawLogitThatIsNotFiniteReportsNothing) {
  RandomData data(404);
  for (const uint16_t bad : std::initializer_list<uint16_t>{0x7f80, 0xff80, 0x7fc0, 0xffff}) {
    Case made = random_case(data, 2056, 16, false);
    for (size_t i = 77; i < made.logits.size(); i += 2056) made.logits[i] = bad;
    check(made, data.describe());
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(drawn_, 0);
}

// One level, and few levels: whole rows tie, and a prefix of the order ends among them.
TEST_F(DetailedSample, TiesGoToTheLowestId) {
  RandomData data(405);
  for (const int64_t vocabulary : {64, 4000, 20000}) {
    for (const uint16_t level :
         std::initializer_list<uint16_t>{0x0000, 0x8000, 0x4000, 0x0001, 0xc300}) {
      Case made = random_case(data, vocabulary, 30, false);
      std::fill(made.logits.begin(), made.logits.end(), level);
      for (size_t i = 2; i < made.logits.size(); i += 61) {
        made.logits[i] = level == 0x8000 ? uint16_t{0x0000} : level;  // -0 and +0 tie
      }
      check(made, data.describe() + ", level " + hex_of(level));
      if (HasFatalFailure()) return;
    }
  }
}

// Steps follow each other without a wait between them: each has memory of its own.
TEST_F(DetailedSample, TwoCallsBeforeOneFinish) {
  RandomData data(406);
  Case cases[] = {random_case(data, 3000, 20, true), random_case(data, 3000, 90, true)};
  std::vector<std::vector<SampleOutcome>> got, want;
  std::deque<DeviceTensor> tensors;
  for (Case& made : cases) {
    want.emplace_back();
    for (size_t r = 0; r < made.rows.size(); r++) {
      SampleRow& row = made.rows[r];
      row.detail = made.details[r] ? &made.details[r]->detail() : nullptr;
      want.back().push_back(reference::sample(made.logits_of(row), row));
    }
    got.emplace_back(made.rows.size());
    tensors.emplace_back(*backend_, made.logits,
                         static_cast<int64_t>(made.logits.size()) / made.vocabulary,
                         made.vocabulary);
  }
  for (size_t c = 0; c < 2; c++) backend_->sample(tensors[c].view(), cases[c].rows, got[c]);
  ASSERT_TRUE(backend_->finish().is_ok());
  for (size_t c = 0; c < 2; c++) {
    for (size_t r = 0; r < got[c].size(); r++) {
      EXPECT_EQ(got[c][r].token, want[c][r].token) << data.describe() << ", row " << r;
      EXPECT_EQ(hex_of(got[c][r].processed_logprob), hex_of(want[c][r].processed_logprob)) << r;
    }
  }
}

// Small shapes of every form, for compute-sanitizer.
TEST_F(DetailedSample, SanitizedSmallRows) {
  RandomData data(407);
  for (const int64_t vocabulary : {40, 1000, 2056, 9224, 12296}) {
    check_random(data, vocabulary, 6, true);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace exact::cuda_test
