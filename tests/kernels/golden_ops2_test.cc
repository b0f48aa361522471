// The reference against the second set of operation goldens (stock PyTorch on an H200, seed 2):
// what the first could not tell apart, and the edges of the domain. What lies outside the domain is
// matched where the rules still hold, and is refused by name for the engine either way.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/reduce.h"
#include "kernels/contract/rope.h"
#include "kernels/contract/sampling.h"
#include "kernels/contract/shape.h"
#include "kernels/contract/special.h"
#include "kernels/reference/reference.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"
#include "tests/support/golden_attention.h"
#include "tests/support/golden_key.h"

namespace exact {
namespace {

constexpr uint64_t kSeed = 2;
constexpr int64_t kTemperatureRows = 8;
constexpr int64_t kTemperatureVocabulary = 32000;

void expect_refused(const Status& status, const std::string& dimension) {
  EXPECT_EQ(status.code(), Code::unsupported);
  EXPECT_NE(status.message().find(dimension), std::string::npos) << status.to_string();
}

// Even out-features have the k16 chain's bits; odd ones run kernels that step by k8.
void check_linear_n(const GoldenFile& golden, const GoldenKey& key) {
  const int64_t n = key.numbers[0];
  expect_refused(contract::check_linear_shape(n, 768), "out_features is " + key.tail);
  const auto x = hash_bf16(key.input("lin.x"), kSeed, 4 * 768, -2, 2);
  const auto w = hash_bf16(key.input("lin.w"), kSeed, static_cast<size_t>(n) * 768, -1, 1);
  std::vector<uint16_t> out(static_cast<size_t>(4 * n));
  const auto step = n % 2 == 0 ? reference::LinearStep::k16 : reference::LinearStep::k8;
  reference::linear({.rows = 4, .out_features = n, .in_features = 768, .step = step}, x, w, {},
                    out);
  EXPECT_BITS_EQ(out, golden.values<uint16_t>(key.text), key.text);
}

void check_linear_k(const GoldenFile& golden, const GoldenKey& key) {
  const int64_t k = key.numbers[0];
  expect_refused(contract::check_linear_shape(128, k), "in_features is " + key.tail);
  const auto k_size = static_cast<size_t>(k);
  const auto x = hash_bf16(key.input("lin.kx"), kSeed, 4 * k_size, -2, 2);
  const auto w = hash_bf16(key.input("lin.kw"), kSeed, 128 * k_size, -1, 1);
  std::vector<uint16_t> out(4 * 128);
  reference::linear({.rows = 4, .out_features = 128, .in_features = k}, x, w, {}, out);
  EXPECT_BITS_EQ(out, golden.values<uint16_t>(key.text), key.text);
}

void check_attention(const GoldenFile& golden, const GoldenKey& key) {
  const bool eight = key.numbers[0] == 80;
  const bool narrow = key.numbers[0] == 32;
  check_attention_golden(golden, key,
                         {.seed = kSeed,
                          .prefix = "att",
                          .query_heads = 8,
                          .kv_heads = eight    ? 8
                                      : narrow ? 4
                                               : 2,
                          .length = 300,
                          .stored_heads = 2,
                          .range = 3});
}

void check_attention_long(const GoldenFile& golden, const GoldenKey& key) {
  check_attention_golden(golden, key,
                         {.seed = kSeed,
                          .prefix = "attl",
                          .query_heads = 8,
                          .kv_heads = key.numbers[0] == 64 ? 2 : 4,
                          .length = 1500,
                          .stored_heads = 4,
                          .range = 1});
}

void check_mean_square_rows(const GoldenFile& golden, const GoldenKey& key) {
  const int64_t width = key.numbers[0];
  const int64_t rows = key.numbers[1];
  const auto x =
      hash_bf16("few.x." + std::to_string(width), kSeed, static_cast<size_t>(width * rows), -3, 3);
  std::vector<float> means;
  for (int64_t row = 0; row < rows; row++)
    means.push_back(contract::mean_square(x.data() + row * width, width, rows));
  EXPECT_BITS_EQ(means, golden.values<float>(key.text), key.text);
}

void check_rms_fused_rows(const GoldenFile& golden, const GoldenKey& key) {
  const auto width = static_cast<size_t>(key.numbers[0]);
  const auto x = hash_bf16(key.input("fused.x"), kSeed, 2048 * width, -3, 3);
  const auto w = hash_bf16(key.input("fused.w"), kSeed, width, 0.5, 1.5);
  const auto rows = golden.values<int32_t>("rms_fused_rows." + key.tail);
  std::vector<uint16_t> out(rows.size() * width);
  for (size_t i = 0; i < rows.size(); i++) {
    const auto row = static_cast<size_t>(rows[i]);
    reference::rms_norm(std::span(x).subspan(row * width, width), w, 1e-6f, NormForm::fused,
                        std::span(out).subspan(i * width, width));
  }
  EXPECT_BITS_EQ(out, golden.values<uint16_t>("rms_fused_out." + key.tail), key.text);
}

// Rows of a tensor whose width is not a multiple of four start off a 16-byte boundary.
void check_log_softmax(const GoldenFile& golden, const GoldenKey& key) {
  const auto vocabulary = static_cast<size_t>(key.numbers[0]);
  const Status domain = contract::check_vocabulary(key.numbers[0]);
  if (vocabulary % 8 == 0)
    EXPECT_TRUE(domain.is_ok()) << domain.to_string();
  else
    expect_refused(domain, "vocabulary is " + key.tail);
  const auto logits = hash_bf16(key.input("lsm"), kSeed, 9 * vocabulary, -12, 12);
  const size_t step = std::max<size_t>(1, vocabulary / 64);
  std::vector<float> got;
  for (size_t row = 0; row < 9; row++) {
    std::vector<float> x;
    for (size_t i = 0; i < vocabulary; i++)
      x.push_back(bf16_to_float(logits[row * vocabulary + i]));
    const auto out = reference::log_softmax(x, static_cast<int64_t>(row));
    for (size_t i = 0; i < vocabulary; i += step) got.push_back(out[i]);
  }
  EXPECT_BITS_EQ(got, golden.values<float>(key.text), key.text);
}

std::vector<float> temperature_logits(int64_t row) {
  const auto all =
      hash_bf16("temp.logits", kSeed,
                static_cast<size_t>(kTemperatureRows * kTemperatureVocabulary), -12, 12);
  std::vector<float> x;
  for (int64_t i = 0; i < kTemperatureVocabulary; i++)
    x.push_back(bf16_to_float(all[static_cast<size_t>(row * kTemperatureVocabulary + i)]));
  return x;
}

void check_temperature(const GoldenFile& golden, const GoldenKey& key) {
  const auto temperature = static_cast<float>(std::stod(key.tail));
  std::vector<float> got;
  for (int64_t row = 0; row < kTemperatureRows; row++) {
    std::vector<float> z = temperature_logits(row);
    for (float& value : z) value = contract::tempered_logit(value, temperature);
    const auto out = reference::log_softmax(z, row);
    for (size_t i = 0; i < out.size(); i += 100) got.push_back(out[i]);
  }
  EXPECT_BITS_EQ(got, golden.values<float>(key.text), key.text);
}

// Of eight rows: the order of a sum of few rows (reduce.h).
void check_entropy(const GoldenFile& golden, const GoldenKey& key) {
  std::vector<float> got;
  for (int64_t row = 0; row < kTemperatureRows; row++) {
    got.push_back(
        reference::entropy(reference::log_softmax(temperature_logits(row), row), kTemperatureRows));
  }
  EXPECT_BITS_EQ(got, golden.values<float>(key.text), key.text);
}

void check_argsort(const GoldenFile& golden, const GoldenKey& key) {
  std::vector<int32_t> got;
  for (int64_t row = 0; row < kTemperatureRows; row++) {
    const std::vector<float> x = temperature_logits(row);
    std::vector<int32_t> order(x.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + 64, order.end(), [&](int32_t a, int32_t b) {
      return contract::precedes(x[static_cast<size_t>(a)], a, x[static_cast<size_t>(b)], b);
    });
    got.insert(got.end(), order.begin(), order.begin() + 64);
  }
  EXPECT_BITS_EQ(got, golden.values<int32_t>(key.text), key.text);
}

RopeConfig scaled_rope(const GoldenKey& key) {
  RopeConfig config;
  config.head_width = static_cast<int32_t>(key.numbers[0]);
  config.theta = static_cast<double>(key.numbers[1]);
  const bool llama3 = key.operation == "llama3_inv_freq";
  config.kind = llama3 ? RopeKind::llama3 : RopeKind::yarn;
  config.factor = !llama3 ? 4.0 : config.head_width == 64 ? 32.0 : 8.0;
  config.low_frequency_factor = 1.0;
  config.high_frequency_factor = 4.0;
  config.original_max_positions = llama3 ? 8192 : 32768;
  return config;
}

void check_scaled_frequencies(const GoldenFile& golden, const GoldenKey& key) {
  EXPECT_BITS_EQ(inverse_frequencies(scaled_rope(key)), golden.values<float>(key.text), key.text);
}

void check_yarn_scale(const GoldenFile& golden, const GoldenKey& key) {
  const std::vector<float> got = {rope_attention_scale(scaled_rope(key))};
  EXPECT_BITS_EQ(got, golden.values<float>(key.text), key.text);
}

using Check = void (*)(const GoldenFile&, const GoldenKey&);
const std::map<std::string, Check> kChecks = {
    {"linear_n", check_linear_n},
    {"linear_k", check_linear_k},
    {"attention", check_attention},
    {"attention_long", check_attention_long},
    {"mean_square_rows", check_mean_square_rows},
    {"rms_fused_rows", check_rms_fused_rows},
    {"rms_fused_out", check_rms_fused_rows},
    {"log_softmax", check_log_softmax},
    {"log_softmax_temperature", check_temperature},
    {"entropy", check_entropy},
    {"argsort_top64", check_argsort},
    {"llama3_inv_freq", check_scaled_frequencies},
    {"yarn_inv_freq", check_scaled_frequencies},
    {"yarn_scale", check_yarn_scale},
};

const GoldenFile& golden_file() {
  static const GoldenFile file("ops2.safetensors");
  return file;
}

TEST(GoldenOps2, EveryKeyHasACheck) {
  EXPECT_EQ(golden_file().keys().size(), 87u);
  for (const std::string& key : golden_file().keys())
    EXPECT_TRUE(kChecks.contains(GoldenKey(key).operation)) << key;
}

class GoldenOps2 : public testing::TestWithParam<std::string> {};

TEST_P(GoldenOps2, ReferenceHasTheBitsOfPyTorch) {
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

INSTANTIATE_TEST_SUITE_P(Seed2, GoldenOps2, testing::ValuesIn(operations()),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace exact
