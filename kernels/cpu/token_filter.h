// token_filter.h owns which tokens top-k, top-p and min-p keep (rule N9).
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace exact::cpu {

// Sets the terms of dropped tokens to zero. terms[i] = exp(z_i - largest z), z = logit * factor;
// keys is working memory for `count` words.
void drop_tokens(const uint16_t* logits, int64_t count, float factor, const SampleRow& row,
                 float* terms, uint64_t* keys);

}  // namespace exact::cpu
