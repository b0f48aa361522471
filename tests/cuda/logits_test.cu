// logits_test.cu: log-probabilities and draws have the bits of the reference for every form of rule
// N7, every filter and every plan; a row with a NaN or an infinity is reported.
#include <cmath>

#include "kernels/cuda/logits.h"
#include "kernels/cuda/logits_plan.h"
#include "kernels/reference/reference.h"
#include "tests/cuda/device.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"
#include "tests/support/golden_key.h"
#include "tests/support/random_data.h"

namespace exact::cuda_test {
namespace {

constexpr int64_t kVocabularies[] = {32,   40,   1000,  2040,  2048,  2056,  4096,  5120,  9208,
                                     9216, 9224, 12248, 12256, 12288, 12296, 16384, 20000, 32000};

std::string describe(const SampleRow& row) {
  return "T " + std::to_string(row.temperature) + ", top-k " + std::to_string(row.top_k) +
         ", top-p " + std::to_string(row.top_p) + ", min-p " + std::to_string(row.min_p) +
         ", seed " + std::to_string(row.seed);
}

// What rows of a model's head look like, and what they never do.
std::vector<uint16_t> random_logits(RandomData& data, int64_t vocabulary) {
  const int64_t choice = data.between(0, 9);
  const float spread = choice < 3 ? 4.0f : choice < 5 ? 0.3f : choice < 6 ? 30.0f : 2.0f;
  const float shift = choice == 4 ? -20.0f : choice == 7 ? 11.0f : 0.0f;
  std::vector<uint16_t> row(static_cast<size_t>(vocabulary));
  for (uint16_t& value : row) {
    value = choice == 8   ? data.bf16(DataKind::tiny)
            : choice == 9 ? data.bf16(DataKind::wide_exponents)
                          : float_to_bf16(shift + spread * data.normal());
  }
  return row;
}

class Logits : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
  }

  static std::vector<float> target_logprobs(const std::vector<uint16_t>& logits, int64_t vocabulary,
                                            const std::vector<int32_t>& targets, int cluster) {
    const DeviceVector<uint16_t> device_logits(logits);
    const DeviceVector<int32_t> device_targets(targets);
    const DeviceVector<float> out(targets.size());
    auto plan =
        cuda::plan_target_logprobs(vocabulary, static_cast<int64_t>(targets.size()), cluster);
    EXPECT_TRUE(plan.is_ok()) << plan.status().to_string();
    const Status status = cuda::launch_target_logprobs(*plan, device_logits.data(),
                                                       device_targets.data(), out.data(), nullptr);
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return out.to_host();
  }

  // One matrix, drawn from by every plan.
  static void check_draws(const std::vector<uint16_t>& logits, int64_t vocabulary,
                          const std::vector<SampleRow>& rows, const std::vector<int>& clusters,
                          const std::string& what) {
    bool filters = false;
    std::vector<SampleOutcome> want;
    for (const SampleRow& row : rows) {
      filters = filters || row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
      want.push_back(
          reference::sample(std::span(logits).subspan(static_cast<size_t>(row.row * vocabulary),
                                                      static_cast<size_t>(vocabulary)),
                            row));
    }
    const DeviceVector<uint16_t> device_logits(logits);
    const DeviceVector<SampleRow> device_rows(rows);
    for (const int cluster : clusters) {
      const DeviceVector<SampleOutcome> outcomes(rows.size());
      auto plan =
          cuda::plan_sample(vocabulary, static_cast<int64_t>(rows.size()), filters, cluster);
      ASSERT_TRUE(plan.is_ok()) << plan.status().to_string();
      const Status status = cuda::launch_sample(*plan, device_logits.data(), device_rows.data(),
                                                filters, outcomes.data(), nullptr);
      ASSERT_TRUE(status.is_ok()) << status.to_string();
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const auto got = outcomes.to_host();
      for (size_t r = 0; r < rows.size(); r++) {
        const std::string where = what + ", V " + std::to_string(vocabulary) + ", cluster " +
                                  std::to_string(plan->cluster) + ", row " + std::to_string(r) +
                                  ", " + describe(rows[r]);
        ASSERT_EQ(got[r].token, want[r].token) << where;
        ASSERT_EQ(hex_of(got[r].logprob), hex_of(want[r].logprob)) << where;
        ASSERT_EQ(hex_of(got[r].processed_logprob), hex_of(want[r].processed_logprob)) << where;
      }
    }
  }

  static SampleRow random_row(RandomData& data, int64_t vocabulary) {
    SampleRow row;
    row.seed = data.bits();
    row.sample_index = static_cast<uint32_t>(data.between(0, 5));
    row.position = static_cast<int32_t>(data.between(0, 40000));
    const float temperatures[] = {0.0f, 0.3f, 0.7f, 1.0f, 1.0f, 1.3f, 5.0f};
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

  static void check_random_draws(RandomData& data, int64_t vocabulary, int64_t rows,
                                 const std::vector<int>& clusters) {
    std::vector<uint16_t> logits;
    std::vector<SampleRow> sample_rows;
    for (int64_t r = 0; r < rows; r++) {
      const auto row = random_logits(data, vocabulary);
      logits.insert(logits.end(), row.begin(), row.end());
      sample_rows.push_back(random_row(data, vocabulary));
      sample_rows.back().row = rows - 1 - r;
    }
    check_draws(logits, vocabulary, sample_rows, clusters, data.describe());
  }
};

TEST_F(Logits, TargetLogprobsHaveTheBitsOfTheReference) {
  RandomData data(20);
  for (const int64_t vocabulary : kVocabularies) {
    std::vector<uint16_t> logits;
    std::vector<int32_t> targets;
    std::vector<float> want;
    for (int r = 0; r < 12; r++) {
      const auto row = random_logits(data, vocabulary);
      targets.push_back(static_cast<int32_t>(data.between(0, vocabulary - 1)));
      want.push_back(reference::target_logprob(row, targets.back()));
      logits.insert(logits.end(), row.begin(), row.end());
    }
    for (const int cluster : {0, 1, 2, 4, 8}) {
      ASSERT_BITS_EQ(target_logprobs(logits, vocabulary, targets, cluster), want,
                     data.describe() + ", V " + std::to_string(vocabulary) + ", cluster " +
                         std::to_string(cluster));
    }
  }
}

TEST_F(Logits, TargetLogprobsOfLargeVocabulariesAndManyRows) {
  RandomData data(21);
  for (const int64_t vocabulary : {128256, 151936, 1 << 20}) {
    std::vector<uint16_t> logits;
    std::vector<int32_t> targets;
    std::vector<float> want;
    for (int r = 0; r < 3; r++) {
      const auto row = random_logits(data, vocabulary);
      targets.push_back(static_cast<int32_t>(data.between(0, vocabulary - 1)));
      want.push_back(reference::target_logprob(row, targets.back()));
      logits.insert(logits.end(), row.begin(), row.end());
    }
    for (const int cluster : {1, 2, 4, 8}) {
      ASSERT_BITS_EQ(target_logprobs(logits, vocabulary, targets, cluster), want,
                     "V " + std::to_string(vocabulary) + ", cluster " + std::to_string(cluster));
    }
  }
  const auto row = random_logits(data, 12296);
  std::vector<uint16_t> logits;
  std::vector<int32_t> targets;
  std::vector<float> want;
  for (int r = 0; r < 500; r++) {
    logits.insert(logits.end(), row.begin(), row.end());
    targets.push_back(r);
    want.push_back(r < 3 ? reference::target_logprob(row, r) : 0.0f);
  }
  const auto got = target_logprobs(logits, 12296, targets, 0);
  EXPECT_BITS_EQ(std::span(got).first(3), std::span(want).first(3), "500 rows");
  const auto again = target_logprobs(logits, 12296, targets, 1);
  EXPECT_BITS_EQ(got, again, "500 rows");
}

TEST_F(Logits, TargetLogprobsHaveTheBitsOfPyTorch) {
  int checked = 0, refused = 0;
  for (const auto& [file, seed, all_rows, columns] :
       {std::tuple{"ops.safetensors", uint64_t{1}, size_t{2}, size_t{512}},
        std::tuple{"ops2.safetensors", uint64_t{2}, size_t{9}, size_t{64}}}) {
    const GoldenFile golden(file);
    for (const std::string& text : golden.keys()) {
      const GoldenKey key(text);
      if (key.operation != "log_softmax") continue;
      const auto vocabulary = static_cast<size_t>(key.numbers[0]);
      if (vocabulary % 8 != 0 || vocabulary < 32) {
        EXPECT_FALSE(cuda::plan_target_logprobs(static_cast<int64_t>(vocabulary), 1).is_ok());
        refused++;
        continue;
      }
      const auto stored = hash_bf16(key.input("lsm"), seed, all_rows * vocabulary, -12, 12);
      const auto values = golden.values<float>(text);
      const size_t step = std::max<size_t>(1, vocabulary / columns);
      const size_t stored_columns = values.size() / all_rows;
      const size_t stride = (stored_columns + 31) / 32;  // of the stored columns, about 32
      std::vector<uint16_t> logits;
      std::vector<int32_t> targets;
      std::vector<float> want;
      for (size_t row = 0; row < all_rows; row++) {
        for (size_t i = row % stride; i < stored_columns; i += stride) {
          const auto begin = stored.begin() + static_cast<int64_t>(row * vocabulary);
          logits.insert(logits.end(), begin, begin + static_cast<int64_t>(vocabulary));
          targets.push_back(static_cast<int32_t>(i * step));
          want.push_back(values[row * stored_columns + i]);
        }
      }
      EXPECT_BITS_EQ(target_logprobs(logits, static_cast<int64_t>(vocabulary), targets, 0), want,
                     text);
      checked++;
    }
  }
  EXPECT_GT(checked, 6);
  EXPECT_GT(refused, 0);
}

TEST_F(Logits, RandomDrawsHaveTheBitsOfTheReference) {
  RandomData data;
  for (const int64_t vocabulary : kVocabularies) {
    check_random_draws(data, vocabulary, 100, {0, 1, 2, 4, 8});
  }
}

TEST_F(Logits, RandomDrawsOfRandomSmallVocabularies) {
  RandomData data(22);
  for (int i = 0; i < 12; i++) {
    check_random_draws(data, 8 * data.between(4, 1600), 150, {0, 8});
  }
}

TEST_F(Logits, RandomDrawsOfLargeVocabularies) {
  RandomData data(23);
  check_random_draws(data, 151936, 24, {0, 1, 2, 4, 8});
  check_random_draws(data, 128256, 8, {0, 2});
  check_random_draws(data, 1 << 20, 2, {1, 2, 8});
}

TEST_F(Logits, DrawsOfEveryFilter) {
  RandomData data(24);
  for (const int64_t vocabulary : {1000, 5120, 12288}) {
    std::vector<uint16_t> logits;
    std::vector<SampleRow> rows;
    for (const float temperature : {0.0f, 0.3f, 1.0f, 1.7f}) {
      for (const int32_t top_k : {0, 1, 40, 100000}) {
        for (const float top_p : {0.0f, 0.3f, 0.95f, 1.0f}) {
          for (const float min_p : {0.0f, 0.05f, 1.0f}) {
            const auto row = random_logits(data, vocabulary);
            logits.insert(logits.end(), row.begin(), row.end());
            rows.push_back({static_cast<int64_t>(rows.size()), data.bits(), 1, 77, temperature,
                            top_k, top_p, min_p});
          }
        }
      }
    }
    check_draws(logits, vocabulary, rows, {0, 2}, "every filter");
  }
}

TEST_F(Logits, TiesGoToTheLowestId) {
  for (const int64_t vocabulary : {64, 4000, 20000}) {
    for (const uint16_t level : {0x0000, 0x8000, 0x4000, 0x0001, 0xc300}) {
      std::vector<uint16_t> row(static_cast<size_t>(vocabulary), level);
      row[2] = level == 0x8000 ? uint16_t{0x0000} : level;  // -0 and +0 tie
      row[3] = level == 0x0001 ? uint16_t{0x0002} : level;
      std::vector<SampleRow> rows;
      for (const float temperature : {0.0f, 1.0f, 1.0f / 3.0f, 1e30f, 3e38f, INFINITY}) {
        for (const int32_t top_k : {0, 1, 7, 63}) {
          for (const float top_p : {0.001f, 0.5f, 1.0f}) {
            SampleRow sample;
            sample.seed = 9 + rows.size();
            sample.temperature = temperature;
            sample.top_k = top_k;
            sample.top_p = top_p;
            rows.push_back(sample);
          }
        }
      }
      check_draws(row, vocabulary, rows, {0, 1, 4}, "level " + hex_of(level));
    }
  }
}

// Logits that only temper apart from each other, or no more: z underflows, keys must tie as z does.
TEST_F(Logits, DrawsWhereTemperedLogitsUnderflow) {
  RandomData data(25);
  constexpr int64_t kVocabulary = 3000;
  for (int turn = 0; turn < 6; turn++) {
    std::vector<uint16_t> logits;
    std::vector<SampleRow> rows;
    for (int64_t r = 0; r < 40; r++) {
      for (int64_t i = 0; i < kVocabulary; i++) {
        const auto bits = static_cast<uint16_t>(data.bits());
        logits.push_back(static_cast<uint16_t>(turn % 2 == 0 ? bits & 0x83ff : bits & 0x9fff));
      }
      SampleRow row = random_row(data, kVocabulary);
      const float temperatures[] = {1.0f, 3.0f, 1e4f, 1e20f, 1e30f, 1e38f};
      row.temperature = data.pick(temperatures);
      row.row = r;
      if (data.between(0, 1) == 0) row.top_k = static_cast<int32_t>(data.between(1, 2999));
      rows.push_back(row);
    }
    check_draws(logits, kVocabulary, rows, {0, 2}, data.describe());
  }
}

TEST_F(Logits, NonFiniteLogitsAreReported) {
  for (const int64_t vocabulary : {2000, 6000, 20000}) {
    for (const uint16_t bad : {0x7f80, 0xff80, 0x7fc0, 0xffff}) {
      for (const int64_t at : {int64_t{0}, int64_t{17}, vocabulary - 1}) {
        RandomData data(26);
        auto row = random_logits(data, vocabulary);
        row[static_cast<size_t>(at)] = bad;
        const auto logprob = target_logprobs(row, vocabulary, {5}, 0);
        EXPECT_EQ(hex_of(logprob[0]), "0x7fffffff") << hex_of(bad) << " at " << at;
        std::vector<SampleRow> rows(4);
        rows[0].temperature = 0.0f;
        rows[1].temperature = 0.7f;
        rows[2].top_k = 3;
        check_draws(row, vocabulary, rows, {0, 1, 8}, "non-finite at " + std::to_string(at));
      }
    }
  }
  // Finite logits whose tempered values are not.
  std::vector<uint16_t> row(4096, 0x7f00);
  std::vector<SampleRow> rows(3);
  rows[0].temperature = 1e-3f;
  rows[1].temperature = 1e-40f;
  rows[2].temperature = 0.0f;
  check_draws(row, 4096, rows, {0, 2}, "infinite after tempering");
}

TEST_F(Logits, AWindowOfValuesIsNotEnough) {
  RandomData data(27);
  constexpr int64_t kVocabulary = 16384;
  std::vector<uint16_t> logits;
  std::vector<SampleRow> rows;
  for (const uint16_t top : {0x4170, 0x3f80, 0xbf80, 0xc2c8}) {  // 15, 1, -1, -100
    for (const int32_t top_k : {1000, 8000, 16000, 16383}) {
      for (const float top_p : {1.0f, 0.9999f}) {
        for (int64_t i = 0; i < kVocabulary; i++) {
          const float value = bf16_to_float(top) - std::fabs(2.0f * data.normal());
          logits.push_back(float_to_bf16(value));
        }
        rows.push_back(
            {static_cast<int64_t>(rows.size()), data.bits(), 0, 3, 1.5f, top_k, top_p, 0.0f});
      }
    }
  }
  check_draws(logits, kVocabulary, rows, {0, 1, 8}, data.describe());
}

TEST(LogitsPlans, RefuseVocabulariesOutsideTheContract) {
  for (const int64_t vocabulary : {0, 24, 1001, 5004, (1 << 20) + 8}) {
    const auto plan = cuda::plan_sample(vocabulary, 1, true);
    EXPECT_EQ(plan.status().code(), Code::unsupported);
    EXPECT_NE(plan.status().message().find("vocabulary is " + std::to_string(vocabulary)),
              std::string::npos);
  }
  EXPECT_TRUE(cuda::plan_sample(1 << 20, 1, true).is_ok());
}

}  // namespace
}  // namespace exact::cuda_test
