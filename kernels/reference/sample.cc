// Log-probabilities (rule N7), the draw of a token and what is reported beside it (rules N8, N9).
#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/contract/log_softmax.h"
#include "kernels/contract/logit_edits.h"
#include "kernels/contract/philox.h"
#include "kernels/contract/reduce.h"
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

// The logits after penalties and bias.
std::vector<float> edit(std::vector<float> x, const SampleDetail& detail) {
  const contract::Penalties penalties{detail.repetition_penalty, detail.presence_penalty,
                                      detail.frequency_penalty};
  for (const LogitEdit& edit : detail.edits) {
    float& value = x[static_cast<size_t>(edit.token)];
    value = contract::edited_logit(value, edit, penalties);
  }
  return x;
}

std::vector<bool> allowed_tokens(size_t vocabulary, const SampleDetail& detail) {
  std::vector<bool> allowed(vocabulary, true);
  const uint32_t* mask = detail.allowed.empty() ? nullptr : detail.allowed.data();
  for (size_t i = 0; i < vocabulary; i++)
    allowed[i] = contract::is_allowed(mask, static_cast<int64_t>(i));
  return allowed;
}

// x, or z of the tempered logits, with the dropped tokens at -inf.
std::vector<float> masked(std::vector<float> values, const std::vector<bool>& kept) {
  for (size_t i = 0; i < values.size(); i++)
    if (!kept[i]) values[i] = kMinusInfinity;
  return values;
}

bool all_finite_where(std::span<const float> x, const std::vector<bool>& where) {
  for (size_t i = 0; i < x.size(); i++)
    if (where[i] && !contract::is_finite(x[i])) return false;
  return true;
}

// What is reported of a row of which no token is drawn.
void report_nothing(const SampleDetail& detail) {
  std::fill(detail.top_ids.begin(), detail.top_ids.end(), -1);
  std::fill(detail.top_logprobs.begin(), detail.top_logprobs.end(), kNan);
  if (detail.kept_ids != nullptr) detail.kept_ids->clear();
  if (detail.entropy != nullptr) *detail.entropy = kNan;
}

void report(std::span<const float> x, const std::vector<bool>& kept, const SampleDetail& detail) {
  const std::vector<float> logprobs = log_softmax(x);
  const std::vector<int32_t> order = order_tokens(x);
  for (size_t k = 0; k < detail.top_ids.size(); k++) {
    detail.top_ids[k] = order[k];
    detail.top_logprobs[k] = logprobs[static_cast<size_t>(order[k])];
  }
  if (detail.entropy != nullptr) *detail.entropy = entropy(logprobs, contract::kManyRows);
  if (detail.kept_ids == nullptr) return;
  detail.kept_ids->clear();
  for (size_t i = 0; i < kept.size(); i++)
    if (kept[i]) detail.kept_ids->push_back(static_cast<int32_t>(i));
}

// The token that is taken, and the row whose log_softmax is its processed log-probability; nothing
// where none can be drawn. `y` are the edited logits.
struct Choice {
  int32_t token = -1;
  std::vector<bool> kept;
  std::vector<float> processed;
};

Choice choose_greedy(const std::vector<float>& y, const std::vector<bool>& allowed) {
  const std::vector<float> x = masked(y, allowed);
  const auto best = std::max_element(x.begin(), x.end());  // the first of equals
  Choice choice;
  choice.token = static_cast<int32_t>(best - x.begin());
  choice.kept.assign(x.size(), false);
  choice.kept[static_cast<size_t>(choice.token)] = true;
  // One token with all the probability: its log_softmax is 0, that of the others -inf.
  choice.processed = masked(std::vector<float>(x.size(), 0.0f), choice.kept);
  return choice;
}

Choice choose_by_draw(const std::vector<float>& y, const std::vector<bool>& allowed,
                      const SampleRow& row) {
  std::vector<float> z(y.size());
  std::transform(y.begin(), y.end(), z.begin(),
                 [&](float v) { return contract::tempered_logit(v, row.temperature); });
  if (!all_finite_where(z, allowed)) return {};
  z = masked(std::move(z), allowed);
  Choice choice;
  choice.kept = kept_tokens(z, row);
  const uint64_t random = contract::random_bits64(row.seed, row.sample_index, row.position,
                                                  contract::RandomPurpose::draw);
  choice.token = draw(weigh(z), choice.kept, random);
  choice.processed = masked(std::move(z), choice.kept);
  return choice;
}

Choice choose(const std::vector<float>& x, const SampleRow& row, const SampleDetail& detail) {
  if (!all_finite(x)) return {};
  const std::vector<float> y = edit(x, detail);
  if (!all_finite(y)) return {};
  const std::vector<bool> allowed = allowed_tokens(x.size(), detail);
  if (std::find(allowed.begin(), allowed.end(), true) == allowed.end()) return {};
  return row.temperature == 0.0f ? choose_greedy(y, allowed) : choose_by_draw(y, allowed, row);
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

float entropy(std::span<const float> logprobs, int64_t tensor_rows) {
  const auto width = static_cast<int64_t>(logprobs.size());
  const auto term = [&](int64_t i) {
    const float logprob = logprobs[static_cast<size_t>(i)];
    return contract::exp(logprob) * logprob;
  };
  const float sum = contract::row_sum(contract::row_sum_order(width, tensor_rows), width, term);
  return contract::canonical_nan(-sum);
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
    kept[token] = z[token] != kMinusInfinity && weights[token] >= least;
  }
  return kept;
}

SampleOutcome sample(std::span<const uint16_t> logits, const SampleRow& row) {
  const SampleDetail nothing;
  const SampleDetail& detail = row.detail == nullptr ? nothing : *row.detail;
  const std::vector<float> x = widen(logits);
  const Choice choice = choose(x, row, detail);
  if (choice.token < 0) {
    report_nothing(detail);
    return {};
  }
  if (row.detail != nullptr) report(x, choice.kept, detail);
  const int32_t token = detail.forced_token >= 0 ? detail.forced_token : choice.token;
  return {token, logprob_at(x, token), logprob_at(choice.processed, token)};
}

}  // namespace exact::reference
