// token_filter.h owns which tokens top-k, top-p and min-p keep, and the draw among them (rule N9).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace exact::cpu {

inline bool has_filter(const SampleRow& row) {
  return row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
}

// Sets the terms of dropped tokens to zero. terms[i] = exp(z_i - largest z), z = logit * factor;
// keys is working memory for `count` words.
void drop_tokens(const uint16_t* logits, int64_t count, float factor, const SampleRow& row,
                 float* terms, uint64_t* keys);
// The same for z as it is, where a mask has dropped those at -inf, and which becomes -inf with its
// term; kept_ids, where it is not null, becomes the ids that are kept, ascending.
void drop_tokens(float* z, int64_t count, const SampleRow& row, float* terms, uint64_t* keys,
                 std::vector<int32_t>* kept_ids);

// In ascending id, the first token whose running weight exceeds the target. block_sums as
// RowKernels::weigh_terms made them.
int32_t find_token(const float* terms, int64_t count, const uint64_t* block_sums, uint64_t target);

// The first out.size() tokens of the order; at most `count`.
void find_first_tokens(const uint16_t* logits, int64_t count, std::span<int32_t> out);

}  // namespace exact::cpu
