// The frequencies and scales of rule N4 beyond what the goldens hold as they are: each kind against
// transformers' formula, and against the goldens' own frequencies where a kind is built on them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/rope.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"
#include "tests/support/golden_key.h"

namespace exact {
namespace {

// Qwen3 with the scaling that its authors publish.
RopeConfig qwen3_yarn() {
  RopeConfig config;
  config.head_width = 128;
  config.theta = 1e6;
  config.kind = RopeKind::yarn;
  config.factor = 4;
  config.original_max_positions = 32768;
  return config;
}

std::vector<size_t> differing_indices(const RopeConfig& a, const RopeConfig& b) {
  const std::vector<float> of_a = inverse_frequencies(a);
  const std::vector<float> of_b = inverse_frequencies(b);
  std::vector<size_t> indices;
  for (size_t i = 0; i < of_a.size(); i++) {
    if (float_bits(of_a[i]) != float_bits(of_b[i])) indices.push_back(i);
  }
  return indices;
}

TEST(Rope, HalvesOfARowAreEqualAndPositionZeroIsTheIdentity) {
  RopeConfig config;
  config.head_width = 64;
  const std::vector<float> frequencies = inverse_frequencies(config);
  ASSERT_EQ(frequencies.size(), 32u);
  EXPECT_EQ(frequencies[0], 1.0f);
  std::vector<uint16_t> row(128);
  rope_row(frequencies, 0, row);
  for (size_t i = 0; i < 128; i++) EXPECT_EQ(row[i], i < 64 ? 0x3f80 : 0) << i;
  rope_row(frequencies, 77, row);
  for (size_t i = 0; i < 32; i++) {
    EXPECT_EQ(row[i], row[i + 32]);
    EXPECT_EQ(row[i + 64], row[i + 96]);
  }
}

// A division would differ: 3 and 10 have no exact reciprocal.
TEST(Rope, LinearIsAProductOfTheGoldenFrequenciesWithTheReciprocal) {
  const GoldenFile golden("ops.safetensors");
  int checked = 0;
  int not_divided = 0;
  for (const std::string& text : golden.keys()) {
    const GoldenKey key(text);
    if (key.operation != "rope.inv_freq") continue;
    for (const double factor : {1.0, 2.0, 3.0, 10.0}) {
      RopeConfig config;
      config.head_width = static_cast<int32_t>(key.numbers[0]);
      config.theta = static_cast<double>(key.numbers[1]);
      config.kind = RopeKind::linear;
      config.factor = factor;
      std::vector<float> want = golden.values<float>(text);
      for (float& frequency : want) {
        const float divided = frequency / static_cast<float>(factor);
        frequency = frequency * (1.0f / static_cast<float>(factor));
        not_divided += divided != frequency;
      }
      EXPECT_BITS_EQ(inverse_frequencies(config), want, text + " / " + std::to_string(factor));
      checked++;
    }
  }
  EXPECT_GT(checked, 0);
  EXPECT_GT(not_divided, 0) << "nothing here tells a product from a division";
}

// The goldens (golden_ops2_test.cc) hold the host's.
TEST(Rope, TheRampOfYarnHasOtherBitsOnTheHost) {
  RopeConfig config = qwen3_yarn();
  RopeConfig host = config;
  for (const double theta : {10000.0, 500000.0}) {
    config.theta = host.theta = theta;
    host.ramp_on_host = false;
    EXPECT_TRUE(differing_indices(config, host).empty());
    host.ramp_on_host = true;
    EXPECT_EQ(differing_indices(config, host).size(), theta == 10000.0 ? 3u : 1u);
  }
}

TEST(Rope, YarnKeepsFastFrequenciesAndDividesSlowOnes) {
  RopeConfig plain = qwen3_yarn();
  plain.kind = RopeKind::standard;
  const std::vector<float> before = inverse_frequencies(plain);
  const std::vector<float> after = inverse_frequencies(qwen3_yarn());
  for (size_t i = 0; i < before.size(); i++) {
    if (i <= 23) {
      EXPECT_EQ(after[i], before[i]) << i;
    } else if (i >= 40) {
      EXPECT_EQ(after[i], before[i] * 0.25f) << i;  // exact: a power of two
    } else {
      EXPECT_TRUE(after[i] < before[i] && after[i] > before[i] * 0.25f) << i;
    }
  }
}

TEST(Rope, EveryFieldOfYarnMovesItsRamp) {
  const auto moved = [](auto&& change) {
    RopeConfig config = qwen3_yarn();
    change(config);
    return !differing_indices(qwen3_yarn(), config).empty();
  };
  EXPECT_TRUE(moved([](RopeConfig& config) { config.truncate = false; }));
  EXPECT_TRUE(moved([](RopeConfig& config) { config.beta_fast = 16; }));
  EXPECT_TRUE(moved([](RopeConfig& config) { config.beta_slow = 2; }));
  EXPECT_TRUE(moved([](RopeConfig& config) { config.original_max_positions = 4096; }));
  EXPECT_TRUE(moved([](RopeConfig& config) { config.factor = 2; }));
  EXPECT_FALSE(moved([](RopeConfig& config) { config.attention_factor = 2; }));
}

// A ramp of no width has transformers' guard of a thousandth; one outside the head is clamped.
TEST(Rope, ARampAtTheEdgesIsFinite) {
  for (const int32_t original : {1, 8, 512, 1 << 24}) {
    for (const double beta : {1e-6, 1.0, 32.0, 1e6}) {
      RopeConfig config = qwen3_yarn();
      config.original_max_positions = original;
      config.beta_fast = config.beta_slow = beta;
      config.truncate = false;
      for (const float frequency : inverse_frequencies(config)) {
        EXPECT_TRUE(frequency > 0 && frequency <= 1) << original << " " << beta;
      }
    }
  }
}

TEST(Rope, OnlyYarnScalesCosinesAndSines) {
  RopeConfig config = qwen3_yarn();
  for (const RopeKind kind : {RopeKind::standard, RopeKind::llama3, RopeKind::linear}) {
    config.kind = kind;
    EXPECT_EQ(rope_attention_scale(config), 1.0f);
  }
  config.kind = RopeKind::yarn;
  EXPECT_EQ(rope_attention_scale(config), static_cast<float>(0.1 * std::log(4.0) + 1));
  std::vector<uint16_t> row(256);
  rope_row(inverse_frequencies(config), 0, row, rope_attention_scale(config));
  EXPECT_EQ(row[0], float_to_bf16(rope_attention_scale(config)));
}

TEST(Rope, TheScaleOfYarnFollowsTheFieldsThatTransformersReads) {
  const double log4 = std::log(4.0);
  RopeConfig config = qwen3_yarn();
  config.mscale = 0.707;  // alone it does not count
  EXPECT_EQ(rope_attention_scale(config), static_cast<float>(0.1 * log4 + 1));
  config.mscale_all_dim = 1.5;
  EXPECT_EQ(rope_attention_scale(config),
            static_cast<float>((0.1 * 0.707 * log4 + 1.0) / (0.1 * 1.5 * log4 + 1.0)));
  config.mscale = 0;
  EXPECT_EQ(rope_attention_scale(config), static_cast<float>(0.1 * log4 + 1));
  config.attention_factor = 1.25;  // goes before the others
  EXPECT_EQ(rope_attention_scale(config), 1.25f);
  config.attention_factor.reset();
  config.factor = 1;
  EXPECT_EQ(rope_attention_scale(config), 1.0f);
}

}  // namespace
}  // namespace exact
