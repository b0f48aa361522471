// sampling.h owns the numbers of rule N9. Tokens are weighed by integers, so that every sum that
// decides something is exact and no order of addition can change a draw.
//
//   z_i   = x_i * (1 / T), fp32: what PyTorch computes for logits.float() / T
//   order = z descending, then id ascending
//   w_i   = floor(exp(z_i - z_max) * 2^40)
//   top-k keeps the first k of the order; top-p the shortest prefix of the kept whose weight
//   reaches ceil(top_p * total), and at least one; min-p those with w_i >= min_p * w_max
//   draw  = in ascending id, the first kept token whose running weight exceeds
//   random * total / 2^64
//
// What is done to x_i before, and which tokens a mask drops: logit_edits.h.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/exp_log.h"

namespace exact::contract {

__extension__ using uint128 = unsigned __int128;

inline constexpr int kWeightBits = 40;

EXACT_HD bool is_finite(float value) {
  return (float_bits(value) >> 23 & 255u) != 255u;
}

// PyTorch divides a tensor by a scalar as a product with the scalar's fp32 reciprocal.
EXACT_HD float tempered_logit(float logit, float temperature) {
  return logit * (1.0f / temperature);
}

// Whether token a comes before token b in the order.
EXACT_HD bool precedes(float z_a, int32_t id_a, float z_b, int32_t id_b) {
  return z_a > z_b || (z_a == z_b && id_a < id_b);
}

// At most 2^40; the product is exact and the conversion truncates.
EXACT_HD uint64_t token_weight(float z, float z_max) {
  return static_cast<uint64_t>(exp(z - z_max) * 0x1p40f);
}

// ceil(fraction * total), exactly: a weight reaches fraction * total if and only if it reaches
// this. fraction is in [0, 1]; total is below 2^64.
EXACT_HD uint64_t fraction_ceiling(float fraction, uint64_t total) {
  const uint32_t bits = float_bits(fraction);
  const uint32_t field = bits >> 23 & 255u;
  const uint32_t significand = (bits & 0x7fffffu) | (field != 0 ? 0x800000u : 0u);
  const uint128 product = static_cast<uint128>(significand) * total;
  const int right = 150 - static_cast<int>(field != 0 ? field : 1u);  // fraction = m * 2^-right
  if (right >= 128) return product != 0 ? 1u : 0u;
  const uint128 whole = product >> right;
  return static_cast<uint64_t>(whole) + (whole << right != product ? 1u : 0u);
}

// floor(random * total / 2^64): the running weight that the drawn token exceeds.
EXACT_HD uint64_t draw_target(uint64_t random, uint64_t total) {
  return static_cast<uint64_t>(static_cast<uint128>(random) * total >> 64);
}

}  // namespace exact::contract
