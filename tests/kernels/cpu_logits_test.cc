// Log-probabilities and draws of the CPU backend against the literal rules, for vocabularies of
// every one of PyTorch's kernels and every filter.
#include "kernels/reference/reference.h"
#include "tests/kernels/cpu_test_support.h"

namespace exact {
namespace {

class CpuLogits : public CpuIsaTest {
 protected:
  static std::vector<uint16_t> logits(RandomData& data, int64_t count, float spread) {
    std::vector<uint16_t> row(static_cast<size_t>(count));
    for (uint16_t& value : row) value = float_to_bf16(data.normal() * spread);
    return row;
  }

  void check_draw(const std::vector<uint16_t>& row, const SampleRow& want_row,
                  const std::string& where) {
    SampleOutcome got;
    const auto columns = static_cast<int64_t>(row.size());
    backend_->sample(host_view(row, 1, columns), std::span(&want_row, 1), std::span(&got, 1));
    ASSERT_TRUE(backend_->finish().is_ok());
    const SampleOutcome want = reference::sample(row, want_row);
    EXPECT_EQ(got.token, want.token) << where;
    EXPECT_EQ(hex_of(got.logprob), hex_of(want.logprob)) << where;
    EXPECT_EQ(hex_of(got.processed_logprob), hex_of(want.processed_logprob)) << where;
  }
};

TEST_P(CpuLogits, TargetLogprobsOfEveryKernel) {
  uint64_t seed = 1;
  for (const int64_t vocabulary :
       {32, 1000, 1024, 2048, 2056, 4096, 9216, 9224, 12248, 12256, 16384, 20008, 32000}) {
    for (const float spread : {0.01f, 3.0f, 40.0f}) {
      RandomData data(++seed);
      std::vector<uint16_t> all;
      for (int r = 0; r < 3; r++) {
        const auto row = logits(data, vocabulary, spread);
        all.insert(all.end(), row.begin(), row.end());
      }
      std::vector<int32_t> targets;
      std::vector<float> got(3), want;
      for (size_t r = 0; r < 3; r++) {
        targets.push_back(static_cast<int32_t>(data.between(0, vocabulary - 1)));
        want.push_back(
            reference::target_logprob(std::span(all).subspan(r * static_cast<size_t>(vocabulary),
                                                             static_cast<size_t>(vocabulary)),
                                      targets[r]));
      }
      backend_->target_logprobs(host_view(all, 3, vocabulary), targets, got);
      expect_same(std::span<const float>(got), std::span<const float>(want),
                  "seed " + std::to_string(seed) + ", V " + std::to_string(vocabulary));
    }
  }
}

TEST_P(CpuLogits, NonFiniteLogitsGiveNaNAndNoToken) {
  for (const uint16_t bad : std::initializer_list<uint16_t>{0x7f80, 0xff80, 0x7fc0, 0xffff}) {
    for (const size_t at : {0u, 17u, 1999u}) {
      RandomData data(2);
      auto row = logits(data, 2000, 3.0f);
      row[at] = bad;
      float logprob = 0.0f;
      const int32_t target = 5;
      backend_->target_logprobs(host_view(row, 1, 2000), std::span(&target, 1),
                                std::span(&logprob, 1));
      EXPECT_EQ(hex_of(logprob), "0x7fffffff") << hex_of(bad) << " at " << at;
      for (const float temperature : {0.0f, 0.7f, 1.0f}) {
        SampleRow sample;
        sample.temperature = temperature;
        check_draw(row, sample, "non-finite at " + std::to_string(at));
      }
    }
  }
}

TEST_P(CpuLogits, DrawsOfEveryFilter) {
  uint64_t seed = 100;
  for (const float temperature : {0.0f, 0.3f, 1.0f, 1.7f}) {
    for (const int32_t top_k : {0, 1, 40, 100000}) {
      for (const float top_p : {0.0f, 0.3f, 0.95f, 1.0f}) {
        for (const float min_p : {0.0f, 0.05f, 1.0f}) {
          RandomData data(++seed);
          const int64_t vocabulary = 8 * data.between(4, 500);
          const auto row = logits(data, vocabulary, data.between(0, 1) == 0 ? 0.5f : 4.0f);
          const SampleRow sample{0,
                                 seed,
                                 static_cast<uint32_t>(data.between(0, 3)),
                                 static_cast<int32_t>(data.between(0, 9000)),
                                 temperature,
                                 top_k,
                                 top_p,
                                 min_p};
          check_draw(row, sample,
                     "seed " + std::to_string(seed) + ", V " + std::to_string(vocabulary) + ", T " +
                         std::to_string(temperature) + ", top-k " + std::to_string(top_k) +
                         ", top-p " + std::to_string(top_p) + ", min-p " + std::to_string(min_p));
        }
      }
    }
  }
}

TEST_P(CpuLogits, TiesGoToTheLowestId) {
  for (const uint16_t level : std::initializer_list<uint16_t>{0x0000, 0x8000, 0x4000}) {
    std::vector<uint16_t> row(4000, level);
    row[2] = level == 0x8000 ? uint16_t{0x0000} : level;  // -0 and +0 tie
    for (const float temperature : {0.0f, 1.0f}) {
      for (const int32_t top_k : {0, 1, 7}) {
        for (const float top_p : {0.001f, 0.5f, 1.0f}) {
          SampleRow sample;
          sample.seed = 9;
          sample.temperature = temperature;
          sample.top_k = top_k;
          sample.top_p = top_p;
          check_draw(row, sample, "level " + hex_of(level));
        }
      }
    }
  }
}

// The kept zero is the largest of what is kept, whichever zero stood for the largest of the row.
TEST_P(CpuLogits, ANegativeZeroThatIsKeptAloneIsCertain) {
  std::vector<uint16_t> row(4000, float_to_bf16(-5.0f));
  row[1] = 0x8000;
  row[16] = row[32] = 0x0000;
  SampleRow sample;
  sample.top_k = 1;
  check_draw(row, sample, "top-k 1");
  sample.top_k = 0, sample.top_p = 0.001f;
  check_draw(row, sample, "top-p 0.001");
}

TEST_P(CpuLogits, FlatNucleusLargerThanTheFirstSort) {
  RandomData data(50);
  const auto row = logits(data, 20000, 0.1f);
  for (const float top_p : {0.01f, 0.2f, 0.999f}) {
    SampleRow sample;
    sample.seed = 51;
    sample.top_p = top_p;
    check_draw(row, sample, "top-p " + std::to_string(top_p));
  }
}

TEST_P(CpuLogits, ManyRowsInOneCall) {
  RandomData data(60);
  constexpr int64_t kRows = 9, kVocabulary = 3000;
  std::vector<uint16_t> all;
  std::vector<SampleRow> rows;
  for (int64_t r = 0; r < kRows; r++) {
    const auto row = logits(data, kVocabulary, 2.0f);
    all.insert(all.end(), row.begin(), row.end());
    rows.push_back({kRows - 1 - r, 77, static_cast<uint32_t>(r), 5, 0.8f, r % 2 == 0 ? 20 : 0,
                    r % 3 == 0 ? 0.9f : 1.0f, 0.0f});
  }
  std::vector<SampleOutcome> got(kRows);
  backend_->sample(host_view(all, kRows, kVocabulary), rows, got);
  for (size_t r = 0; r < kRows; r++) {
    const SampleOutcome want = reference::sample(
        std::span(all).subspan(static_cast<size_t>(rows[r].row * kVocabulary), kVocabulary),
        rows[r]);
    EXPECT_EQ(got[r].token, want.token) << "row " << r;
    EXPECT_EQ(hex_of(got[r].logprob), hex_of(want.logprob)) << "row " << r;
    EXPECT_EQ(hex_of(got[r].processed_logprob), hex_of(want.processed_logprob)) << "row " << r;
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuLogits, testing::ValuesIn(kAllIsas), isa_test_name);

}  // namespace
}  // namespace exact
