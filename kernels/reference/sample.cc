// Log-probabilities (rule N7) and the draw of a token (rules N8, N9).
#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/contract/log_softmax.h"
#include "kernels/contract/philox.h"
#include "kernels/contract/sampling.h"
#include "kernels/reference/reference.h"

namespace exact::reference {
namespace {

const float kMinusInfinity = float_from_bits(0xff800000u);
const float kNan = float_from_bits(0x7fffffffu);

contract::LogSoftmaxRow log_softmax_row(std::span<const float> x, int64_t row_index) {
  float max = kMinusInfinity;
  for (const float value : x) max = value > max ? value : max;
  const auto term = [&](int64_t i) { return contract::exp(x[static_cast<size_t>(i)] - max); };
  const float sum = contract::log_softmax_sum(static_cast<int64_t>(x.size()), row_index, term);
  return {max, contract::log(sum)};
}

float logprob_at(std::span<const float> x, int32_t token) {
  EXACT_CHECK(token >= 0 && static_cast<size_t>(token) < x.size(), "a token beyond the vocabulary");
  return contract::log_softmax_value(x[static_cast<size_t>(token)], log_softmax_row(x, 0));
}

std::vector<float> widen(std::span<const uint16_t> logits) {
  std::vector<float> x(logits.size());
  std::transform(logits.begin(), logits.end(), x.begin(),
                 [](uint16_t v) { return bf16_to_float(v); });
  return x;
}

bool all_finite(std::span<const float> x) {
  return std::all_of(x.begin(), x.end(), [](float v) { return contract::is_finite(v); });
}

// Token ids by z descending, then id ascending.
std::vector<int32_t> order_tokens(std::span<const float> z) {
  std::vector<int32_t> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return contract::precedes(z[static_cast<size_t>(a)], a, z[static_cast<size_t>(b)], b);
  });
  return order;
}

// How many of the first `count` tokens of the order top-p keeps.
size_t top_p_count(const std::vector<int32_t>& order, const std::vector<uint64_t>& weights,
                   size_t count, float top_p) {
  uint64_t total = 0;
  for (size_t i = 0; i < count; i++) total += weights[static_cast<size_t>(order[i])];
  const uint64_t wanted = contract::fraction_ceiling(top_p, total);
  uint64_t running = 0;
  for (size_t i = 0; i < count; i++) {
    running += weights[static_cast<size_t>(order[i])];
    if (running >= wanted) return i + 1;
  }
  return count;
}

std::vector<uint64_t> weigh(std::span<const float> z) {
  const float max = *std::max_element(z.begin(), z.end());
  std::vector<uint64_t> weights(z.size());
  for (size_t i = 0; i < z.size(); i++) weights[i] = contract::token_weight(z[i], max);
  return weights;
}

int32_t draw(const std::vector<uint64_t>& weights, const std::vector<bool>& kept, uint64_t random) {
  uint64_t total = 0;
  for (size_t i = 0; i < weights.size(); i++)
    if (kept[i]) total += weights[i];
  const uint64_t target = contract::draw_target(random, total);
  uint64_t running = 0;
  for (size_t i = 0; i < weights.size(); i++) {
    if (kept[i]) running += weights[i];
    if (running > target) return static_cast<int32_t>(i);
  }
  check_failed(__FILE__, __LINE__, "running > target", "the target lies below the total weight");
}

}  // namespace

std::vector<float> log_softmax(std::span<const float> row, int64_t row_index) {
  const contract::LogSoftmaxRow state = log_softmax_row(row, row_index);
  std::vector<float> out(row.size());
  for (size_t i = 0; i < row.size(); i++) out[i] = contract::log_softmax_value(row[i], state);
  return out;
}

float target_logprob(std::span<const uint16_t> logits, int32_t target) {
  const std::vector<float> x = widen(logits);
  return all_finite(x) ? logprob_at(x, target) : kNan;
}

std::vector<bool> kept_tokens(std::span<const float> z, const SampleRow& row) {
  const std::vector<int32_t> order = order_tokens(z);
  const std::vector<uint64_t> weights = weigh(z);
  size_t count = z.size();
  if (row.top_k > 0) count = std::min(count, static_cast<size_t>(row.top_k));
  if (row.top_p < 1.0f) count = top_p_count(order, weights, count, row.top_p);
  const uint64_t largest = weights[static_cast<size_t>(order[0])];
  const uint64_t least = row.min_p > 0.0f ? contract::fraction_ceiling(row.min_p, largest) : 0;
  std::vector<bool> kept(z.size(), false);
  for (size_t i = 0; i < count; i++) {
    const auto token = static_cast<size_t>(order[i]);
    kept[token] = weights[token] >= least;
  }
  return kept;
}

SampleOutcome sample(std::span<const uint16_t> logits, const SampleRow& row) {
  const std::vector<float> x = widen(logits);
  if (!all_finite(x)) return {};
  if (row.temperature == 0.0f) {
    const auto best = std::max_element(x.begin(), x.end());  // the first of equals
    const auto token = static_cast<int32_t>(best - x.begin());
    return {token, logprob_at(x, token), 0.0f};
  }
  std::vector<float> z(x.size());
  std::transform(x.begin(), x.end(), z.begin(),
                 [&](float v) { return contract::tempered_logit(v, row.temperature); });
  if (!all_finite(z)) return {};
  const std::vector<bool> kept = kept_tokens(z, row);
  const uint64_t random = contract::random_bits64(row.seed, row.sample_index, row.position,
                                                  contract::RandomPurpose::draw);
  const int32_t token = draw(weigh(z), kept, random);
  for (size_t i = 0; i < z.size(); i++)
    if (!kept[i]) z[i] = kMinusInfinity;
  return {token, logprob_at(x, token), logprob_at(z, token)};
}

}  // namespace exact::reference
