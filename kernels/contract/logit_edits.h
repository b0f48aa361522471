// logit_edits.h owns what rule N9 does to a logit before the temperature: penalties, bias, masks.
//
//   x = x < 0 ? x * r : x * (1 / r)     repetition, of a token in prompt or output
//   x = x - f * count                   frequency, of a token that is count times in the output
//   x = x - p                           presence, where count > 0
//   x = x + bias
//
// Every operation is rounded. A token that is not allowed is -inf at the temperature.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/base/bf16.h"

namespace exact::contract {

// K of SampleDetail::top_ids.
inline constexpr int kMaxTopLogprobs = 64;

struct Penalties {
  float repetition = 1.0f;
  float presence = 0.0f;
  float frequency = 0.0f;
};

// PyTorch divides a tensor by a scalar as a product with the scalar's fp32 reciprocal.
EXACT_HD float edited_logit(float x, const LogitEdit& edit, const Penalties& penalties) {
  if (edit.seen) {
    x = x < 0.0f ? x * penalties.repetition : x * (1.0f / penalties.repetition);
  }
  x = x - penalties.frequency * static_cast<float>(edit.count);
  if (edit.count > 0) x = x - penalties.presence;
  return x + edit.bias;
}

// How many words a mask of V bits has.
EXACT_HD constexpr int64_t mask_words(int64_t vocabulary) {
  return (vocabulary + 31) / 32;
}

// No mask allows every token.
EXACT_HD bool is_allowed(const uint32_t* mask, int64_t token) {
  return mask == nullptr || (mask[token / 32] >> (token % 32) & 1u) != 0;
}

}  // namespace exact::contract
