// The reference against the first set of operation goldens (stock PyTorch on an H200, seed 1):
// every key of the file, every stored bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/pointwise.h"
#include "kernels/contract/reduce.h"
#include "kernels/contract/rope.h"
#include "kernels/contract/shape.h"
#include "kernels/contract/special.h"
#include "kernels/reference/reference.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"
#include "tests/support/golden_attention.h"
#include "tests/support/golden_key.h"

namespace exact {
namespace {

constexpr uint64_t kSeed = 1;
constexpr float kEpsilon = 1e-6f;

void check_linear(const GoldenFile& golden, const GoldenKey& key) {
  const int64_t n = key.numbers[0];
  const int64_t k = key.numbers[1];
  const auto n_size = static_cast<size_t>(n);
  const auto k_size = static_cast<size_t>(k);
  EXPECT_TRUE(contract::check_linear_shape(n, k).is_ok()) << key.text;
  const auto x = hash_bf16(key.input("lin.x"), kSeed, 8 * k_size, -2, 2);
  const auto w = hash_bf16(key.input("lin.w"), kSeed, n_size * k_size, -1, 1);
  std::vector<uint16_t> bias;
  if (key.operation == "linear_bias") bias = hash_bf16(key.input("lin.b"), kSeed, n_size, -1, 1);
  std::vector<uint16_t> out(8 * n_size);
  reference::linear({.rows = 8, .out_features = n, .in_features = k}, x, w, bias, out);
  EXPECT_BITS_EQ(out, golden.values<uint16_t>(key.text), key.text);
}

void check_mean_square(const GoldenFile& golden, const GoldenKey& key) {
  const int64_t width = key.numbers[0];
  EXPECT_TRUE(contract::check_norm_width(width).is_ok()) << key.text;
  const auto x = hash_bf16(key.input("norm.x"), kSeed, static_cast<size_t>(64 * width), -3, 3);
  std::vector<float> means;
  for (int64_t row = 0; row < 64; row++)
    means.push_back(contract::mean_square(x.data() + row * width, width, 64));
  EXPECT_BITS_EQ(means, golden.values<float>(key.text), key.text);
}

void check_rms_norm(const GoldenFile& golden, const GoldenKey& key) {
  const auto width = static_cast<size_t>(key.numbers[0]);
  const auto x = hash_bf16(key.input("norm.x"), kSeed, 4 * width, -3, 3);
  const auto w = hash_bf16(key.input("norm.w"), kSeed, width, 0.5, 1.5);
  const NormForm form = key.operation == "rms_hf" ? NormForm::hf : NormForm::fused;
  std::vector<uint16_t> out(4 * width);
  reference::rms_norm(x, w, kEpsilon, form, out);
  EXPECT_BITS_EQ(out, golden.values<uint16_t>(key.text), key.text);
}

void check_silu(const GoldenFile& golden, const GoldenKey& key) {
  const auto gate = hash_bf16("silu", kSeed, 16384, -20, 20);
  const auto up = hash_bf16("silu.up", kSeed, 16384, -3, 3);
  std::vector<uint16_t> out(gate.size());
  if (key.operation == "silu")
    std::transform(gate.begin(), gate.end(), out.begin(),
                   [](uint16_t g) { return contract::silu(g); });
  else
    reference::silu_mul(gate, up, out);
  EXPECT_BITS_EQ(out, golden.values<uint16_t>(key.text), key.text);
}

void check_exp(const GoldenFile& golden, const GoldenKey& key) {
  auto x = hash_fp32("expf", kSeed, 65536, -100, 20);
  for (float& value : x) value = contract::exp(value);
  EXPECT_BITS_EQ(x, golden.values<float>(key.text), key.text);
}

void check_log(const GoldenFile& golden, const GoldenKey& key) {
  auto x = hash_fp32("logf", kSeed, 65536, 1e-6, 200000);
  for (float& value : x) value = contract::log(value);
  EXPECT_BITS_EQ(x, golden.values<float>(key.text), key.text);
}

void check_log_softmax(const GoldenFile& golden, const GoldenKey& key) {
  const auto vocabulary = static_cast<size_t>(key.numbers[0]);
  const auto logits = hash_bf16(key.input("lsm"), kSeed, 2 * vocabulary, -12, 12);
  const size_t step = std::max<size_t>(1, vocabulary / 512);
  std::vector<float> got;
  for (size_t row = 0; row < 2; row++) {
    std::vector<float> x;
    for (size_t i = 0; i < vocabulary; i++)
      x.push_back(bf16_to_float(logits[row * vocabulary + i]));
    const auto out = reference::log_softmax(x, static_cast<int64_t>(row));
    for (size_t i = 0; i < vocabulary; i += step) got.push_back(out[i]);
  }
  EXPECT_BITS_EQ(got, golden.values<float>(key.text), key.text);
}

RopeConfig standard_rope(const GoldenKey& key) {
  RopeConfig config;
  config.head_width = static_cast<int32_t>(key.numbers[0]);
  config.theta = static_cast<double>(key.numbers[1]);
  return config;
}

void check_inverse_frequencies(const GoldenFile& golden, const GoldenKey& key) {
  EXPECT_BITS_EQ(inverse_frequencies(standard_rope(key)), golden.values<float>(key.text), key.text);
}

void check_cos_sin(const GoldenFile& golden, const GoldenKey& key) {
  const bool cosine = key.operation == "rope.cos";
  const auto frequencies = inverse_frequencies(standard_rope(key));
  const size_t half = frequencies.size();
  const auto want = golden.values<float>(key.text);
  std::vector<float> got;
  size_t table_mismatches = 0;
  for (const int position : {0, 1, 2, 3, 17, 100, 1023, 4095, 8191, 16384, 32767, 40959, 131071}) {
    std::vector<uint16_t> table(4 * half);
    rope_row(frequencies, position, table);
    for (size_t i = 0; i < 2 * half; i++) {
      const float angle = frequencies[i % half] * static_cast<float>(position);
      got.push_back(cosine ? contract::cos(angle) : contract::sin(angle));
      const uint16_t rounded = float_to_bf16(want[got.size() - 1]);
      table_mismatches += table[(cosine ? 0 : 2 * half) + i] != rounded;
    }
  }
  EXPECT_BITS_EQ(got, want, key.text);
  EXPECT_EQ(table_mismatches, 0u) << key.text;
}

void check_attention(const GoldenFile& golden, const GoldenKey& key) {
  const bool narrow = key.numbers[0] == 64;
  check_attention_golden(golden, key,
                         {.seed = kSeed,
                          .prefix = "att",
                          .query_heads = 8,
                          .kv_heads = narrow ? 2 : 4,
                          .length = narrow ? 333 : 517,
                          .stored_heads = 8,
                          .range = 3});
}

using Check = void (*)(const GoldenFile&, const GoldenKey&);
const std::map<std::string, Check> kChecks = {
    {"linear", check_linear},
    {"linear_bias", check_linear},
    {"mean_square", check_mean_square},
    {"rms_hf", check_rms_norm},
    {"rms_fused", check_rms_norm},
    {"silu", check_silu},
    {"silu_mul", check_silu},
    {"expf", check_exp},
    {"logf", check_log},
    {"log_softmax", check_log_softmax},
    {"rope.inv_freq", check_inverse_frequencies},
    {"rope.cos", check_cos_sin},
    {"rope.sin", check_cos_sin},
    {"attention", check_attention},
};

const GoldenFile& golden_file() {
  static const GoldenFile file("ops.safetensors");
  return file;
}

TEST(GoldenOps, EveryKeyHasACheck) {
  EXPECT_EQ(golden_file().keys().size(), 60u);
  for (const std::string& key : golden_file().keys())
    EXPECT_TRUE(kChecks.contains(GoldenKey(key).operation)) << key;
}

class GoldenOps : public testing::TestWithParam<std::string> {};

TEST_P(GoldenOps, ReferenceHasTheBitsOfPyTorch) {
  int checked = 0;
  for (const std::string& text : golden_file().keys()) {
    const GoldenKey key(text);
    if (key.operation != GetParam()) continue;
    kChecks.at(key.operation)(golden_file(), key);
    checked++;
  }
  EXPECT_GT(checked, 0) << "no golden is left for " << GetParam();
}

std::vector<std::string> operations() {
  std::vector<std::string> names;
  for (const auto& [name, check] : kChecks) names.push_back(name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Seed1, GoldenOps, testing::ValuesIn(operations()), [](const auto& tested) {
  std::string name = tested.param;
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
});

}  // namespace
}  // namespace exact
