#include "kernels/cpu/token_filter.h"

#include <algorithm>

#include "kernels/base/bf16.h"
#include "kernels/contract/sampling.h"

namespace exact::cpu {
namespace {

// Tokens that are ordered first when a prefix of unknown length is looked for.
constexpr int64_t kFirstSorted = 256;

uint64_t weight(float term) {
  return static_cast<uint64_t>(term * 0x1p40f);
}

// Ascending keys are the order of rule N9: z descending, then id ascending. z is finite.
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

// Tokens whose key is at most this one pass top-k and top-p.
uint64_t last_kept_key(const uint16_t* logits, int64_t count, float factor, const SampleRow& row,
                       const float* terms, uint64_t* keys) {
  for (int64_t i = 0; i < count; i++) keys[i] = order_key(bf16_to_float(logits[i]) * factor, i);
  int64_t kept = count;
  if (row.top_k > 0 && row.top_k < count) {
    kept = row.top_k;
    std::nth_element(keys, keys + (kept - 1), keys + count);
  }
  if (row.top_p < 1.0f) return last_of_nucleus(keys, kept, terms, row.top_p);
  return kept < count ? keys[kept - 1] : ~uint64_t{0};
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

}  // namespace exact::cpu
