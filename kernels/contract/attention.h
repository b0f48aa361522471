// attention.h owns rule N5: the online softmax of FlashAttention 2 as PyTorch builds it, without a
// split of the keys. One query sees its own key block first, then the blocks below it, down to 0.
//
//   S    = chain N1 over the head width, fp32; masked scores are -inf
//   m'   = max(m, max S);  f = ex2((m - m') * c);  O *= f          (not in the first block)
//   p    = ex2( RN(S * c) - RN(m' * c) )
//   O    = chain N1 over the block's keys, ascending, of bf16(p), on top of O
//   end  = bf16(O * (1 / sum)), an IEEE reciprocal
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/float_ops.h"
#include "kernels/contract/special_unit.h"

namespace exact::contract {

inline constexpr int kMaxKeyBlock = 128;

// Keys in a block, which starts at a multiple of it; 0: not a head width of the contract.
EXACT_HD constexpr int key_block(int head_width) {
  switch (head_width) {
    case 32:
    case 64:
      return 128;
    case 80:
    case 96:
    case 128:
    case 256:
      return 64;
    default:
      return 0;
  }
}

// c: the scale 1/sqrt(E) as fp32, times log2 e in double, as fp32.
EXACT_HD float score_scale(int head_width) {
  const float scale = static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(head_width)));
  return static_cast<float>(static_cast<double>(scale) * 1.4426950408889634074);
}

// The quad lane that adds the probability of this column of a block.
EXACT_HD constexpr int quad_lane(int column) {
  return column / 2 % 4;
}

// The running state of one query row: start it as {-inf, {0, 0, 0, 0}, true}.
struct SoftmaxRow {
  float max;
  float lane_sums[4];
  bool first_block;
};

EXACT_HD SoftmaxRow new_softmax_row() {
  return {float_from_bits(0xff800000u), {0.0f, 0.0f, 0.0f, 0.0f}, true};
}

// f: what O and the lane sums of the earlier blocks are multiplied with.
EXACT_HD float rescale_factor(float old_max, float new_max, float c) {
  return ex2((old_max - new_max) * c);
}

EXACT_HD float probability(float score, float c, float scaled_max) {
  return ex2(score * c - scaled_max);
}

// Takes one block of scores; writes bf16(p) and returns f (1 in the first block, where O is zero).
// A lane's first column of the block is fused with the rescaling: fma(sum, f, p).
EXACT_HD float softmax_block(SoftmaxRow& row, const float* scores, int block, float c,
                             uint16_t* probabilities) {
  float max = row.max;
  for (int i = 0; i < block; i++) max = scores[i] > max ? scores[i] : max;
  const float factor = row.first_block ? 1.0f : rescale_factor(row.max, max, c);
  const float scaled_max = max * c;
  for (int i = 0; i < block; i++) {
    const float p = probability(scores[i], c, scaled_max);
    float& sum = row.lane_sums[quad_lane(i)];
    const bool opens_lane = i < 8 && i % 2 == 0;
    if (!opens_lane)
      sum = sum + p;
    else
      sum = row.first_block ? p : fma_rn(sum, factor, p);
    probabilities[i] = float_to_bf16(p);
  }
  row.max = max;
  row.first_block = false;
  return factor;
}

EXACT_HD float softmax_sum(const float lane_sums[4]) {
  return (lane_sums[0] + lane_sums[2]) + (lane_sums[1] + lane_sums[3]);
}

}  // namespace exact::contract
