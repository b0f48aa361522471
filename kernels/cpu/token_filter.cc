#include "kernels/cpu/token_filter.h"

#include <algorithm>
#include <array>

#include "kernels/base/bf16.h"
#include "kernels/contract/logit_edits.h"
#include "kernels/contract/sampling.h"
#include "kernels/cpu/row_kernels.h"

namespace exact::cpu {
namespace {

// Tokens that are ordered first when a prefix of unknown length is looked for.
constexpr int64_t kFirstSorted = 256;

uint64_t weight(float term) {
  return static_cast<uint64_t>(term * 0x1p40f);
}

// Ascending keys are the order of rule N9: z descending, then id ascending. z is not NaN.
uint64_t order_key(float z, int64_t id) {
  const uint32_t bits = float_bits(z == 0.0f ? 0.0f : z);  // -0 equals +0
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | static_cast<uint64_t>(id);
}

int64_t id_of(uint64_t key) {
  return static_cast<int64_t>(key & 0xffffffffu);
}

// The last key of the shortest prefix whose weight reaches top_p of the weight of keys[0, count).
// Sorts no more of them than it needs.
uint64_t last_of_nucleus(uint64_t* keys, int64_t count, const float* terms, float top_p) {
  uint64_t total = 0;
  for (int64_t i = 0; i < count; i++) total += weight(terms[id_of(keys[i])]);
  const uint64_t wanted = contract::fraction_ceiling(top_p, total);
  uint64_t running = 0;
  int64_t sorted = 0;
  for (int64_t piece = kFirstSorted; sorted < count; piece *= 4) {
    const int64_t end = std::min(count, sorted + piece);
    if (end < count) std::nth_element(keys + sorted, keys + end, keys + count);
    std::sort(keys + sorted, keys + end);
    for (; sorted < end; sorted++) {
      running += weight(terms[id_of(keys[sorted])]);
      if (running >= wanted) return keys[sorted];
    }
  }
  return keys[count - 1];
}

// Tokens whose key is at most this one pass top-k and top-p. `keys` are those of all tokens.
uint64_t last_kept_key(uint64_t* keys, int64_t count, const SampleRow& row, const float* terms) {
  int64_t kept = count;
  if (row.top_k > 0 && row.top_k < count) {
    kept = row.top_k;
    std::nth_element(keys, keys + (kept - 1), keys + count);
  }
  if (row.top_p < 1.0f) return last_of_nucleus(keys, kept, terms, row.top_p);
  return kept < count ? keys[kept - 1] : ~uint64_t{0};
}

uint64_t last_kept_key(const uint16_t* logits, int64_t count, float factor, const SampleRow& row,
                       const float* terms, uint64_t* keys) {
  for (int64_t i = 0; i < count; i++) keys[i] = order_key(bf16_to_float(logits[i]) * factor, i);
  return last_kept_key(keys, count, row, terms);
}

}  // namespace

void drop_tokens(const uint16_t* logits, int64_t count, float factor, const SampleRow& row,
                 float* terms, uint64_t* keys) {
  if (row.min_p > 0.0f) {
    // The largest z has the term 1, and is never dropped by what comes before.
    const uint64_t least = contract::fraction_ceiling(row.min_p, weight(1.0f));
    const bool ordered = row.top_k > 0 || row.top_p < 1.0f;
    const uint64_t last =
        ordered ? last_kept_key(logits, count, factor, row, terms, keys) : ~uint64_t{0};
    for (int64_t i = 0; i < count; i++) {
      const bool behind = ordered && order_key(bf16_to_float(logits[i]) * factor, i) > last;
      if (behind || weight(terms[i]) < least) terms[i] = 0.0f;
    }
    return;
  }
  const uint64_t last = last_kept_key(logits, count, factor, row, terms, keys);
  for (int64_t i = 0; i < count; i++) {
    if (order_key(bf16_to_float(logits[i]) * factor, i) > last) terms[i] = 0.0f;
  }
}

void drop_tokens(float* z, int64_t count, const SampleRow& row, float* terms, uint64_t* keys,
                 std::vector<int32_t>* kept_ids) {
  uint64_t last = ~uint64_t{0};
  if (row.top_k > 0 || row.top_p < 1.0f) {
    for (int64_t i = 0; i < count; i++) keys[i] = order_key(z[i], i);
    last = last_kept_key(keys, count, row, terms);
  }
  // A weight that is wanted has at most 24 bits above its last: exact as fp32, and so is a term's.
  const uint64_t least = row.min_p > 0.0f ? contract::fraction_ceiling(row.min_p, weight(1.0f)) : 0;
  const float least_term = static_cast<float>(least) * 0x1p-40f;
  auto* const ids = reinterpret_cast<int32_t*>(keys);  // the keys have done their work
  int64_t kept_count = 0;
  for (int64_t i = 0; i < count; i++) {
    // A masked token has no weight, but may stand in front of `last` where few are allowed.
    const bool kept =
        contract::is_finite(z[i]) & (order_key(z[i], i) <= last) & (terms[i] >= least_term);
    z[i] = kept ? z[i] : float_from_bits(0xff800000u);
    terms[i] = kept ? terms[i] : 0.0f;
    ids[kept_count] = static_cast<int32_t>(i);
    kept_count += kept ? 1 : 0;
  }
  if (kept_ids != nullptr) kept_ids->assign(ids, ids + kept_count);
}

int32_t find_token(const float* terms, int64_t count, const uint64_t* block_sums, uint64_t target) {
  uint64_t running = 0;
  int64_t block = 0;
  while (running + block_sums[block] <= target) running += block_sums[block++];
  for (int64_t i = block * kWeightBlock; i < count; i++) {
    running += weight(terms[i]);
    if (running > target) return static_cast<int32_t>(i);
  }
  check_failed(__FILE__, __LINE__, "running > target", "the target lies below the total weight");
}

// A heap of the first ones found so far, the last of them on top: few tokens pass its top.
void find_first_tokens(const uint16_t* logits, int64_t count, std::span<int32_t> out) {
  std::array<uint64_t, contract::kMaxTopLogprobs> first;
  const auto wanted = static_cast<int64_t>(out.size());
  EXACT_CHECK(wanted <= count && wanted <= contract::kMaxTopLogprobs, "too many top tokens");
  if (wanted == 0) return;
  const auto key_of = [&](int64_t i) { return order_key(bf16_to_float(logits[i]), i); };
  const auto end = first.begin() + wanted;
  for (int64_t i = 0; i < wanted; i++) first[static_cast<size_t>(i)] = key_of(i);
  std::make_heap(first.begin(), end);
  for (int64_t i = wanted; i < count; i++) {
    const uint64_t key = key_of(i);
    if (key >= first.front()) continue;
    std::pop_heap(first.begin(), end);
    *(end - 1) = key;
    std::push_heap(first.begin(), end);
  }
  std::sort_heap(first.begin(), end);
  std::transform(first.begin(), end, out.begin(),
                 [](uint64_t key) { return static_cast<int32_t>(id_of(key)); });
}

}  // namespace exact::cpu
