// reduce.h owns the orders of summation of rules N2 and N3: PyTorch's mean over the last dimension
// of a contiguous (rows, width) tensor, and the sum inside F.rms_norm. Terms are added by `threads`
// partial sums, which are then halved: s[l] += s[l + off] for off = n/2 ... 1.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/float_ops.h"

namespace exact::contract {

inline constexpr int kMaxRowThreads = 512;
// From this many rows on, the order depends on the width alone. A trainer's batch has more, so this
// is the order of the contract; a smaller count is for those who compare with tiny tensors.
inline constexpr int64_t kManyRows = 16;

struct RowSumOrder {
  int warp_width;  // W: lanes that are halved first
  int threads;     // T: W, or W times the warps that share a row
  bool grouped;    // four elements at a time, an accumulator for each position in the group
};

EXACT_HD int floor_power_of_two(int64_t value, int limit) {
  int power = 1;
  while (power < limit && static_cast<int64_t>(power) * 2 <= value) power *= 2;
  return power;
}

EXACT_HD int smaller(int a, int b) {
  return a < b ? a : b;
}

// PyTorch's reduce_kernel<512, 1>, four values a thread.
EXACT_HD RowSumOrder row_sum_order(int64_t width, int64_t rows) {
  const bool grouped = width >= 128;
  const int across = floor_power_of_two(grouped ? width / 4 : width, 512);
  const int down = floor_power_of_two(rows, 512);
  int warp_width = smaller(across, 32);
  const int warps = smaller(down, 512 / warp_width);
  warp_width = smaller(across, 512 / warps);
  const bool split = (width + warp_width - 1) / warp_width >= smaller(warps * 16, 256);
  return {warp_width, split ? warp_width * warps : warp_width, grouped};
}

// The partial sum of one thread; term(i) gives the fp32 value of element i.
template <class Term>
EXACT_HD float row_sum_of_thread(const RowSumOrder& order, int64_t width, int thread,
                                 const Term& term) {
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (order.grouped) {
    for (int64_t group = thread; group * 4 + 3 < width; group += order.threads)
      for (int j = 0; j < 4; j++) sums[j] = sums[j] + term(group * 4 + j);
    const int64_t tail = width - width % 4 + thread;
    if (tail < width) sums[0] = sums[0] + term(tail);
  } else {
    int n = 0;
    for (int64_t i = thread; i < width; i += order.threads, n++)
      sums[n & 3] = sums[n & 3] + term(i);
  }
  return ((sums[0] + sums[1]) + sums[2]) + sums[3];
}

// Halves `count` values, which lie `stride` apart; count is a power of two.
EXACT_HD float halve(float* values, int count, int stride) {
  for (int off = count / 2; off > 0; off /= 2)
    for (int i = 0; i < off; i++)
      values[i * stride] = values[i * stride] + values[(i + off) * stride];
  return values[0];
}

// Lanes inside each warp first, then across the warps.
template <class Term>
EXACT_HD float row_sum(const RowSumOrder& order, int64_t width, const Term& term) {
  float sums[kMaxRowThreads];
  for (int t = 0; t < order.threads; t++) sums[t] = row_sum_of_thread(order, width, t, term);
  for (int warp = 0; warp < order.threads; warp += order.warp_width)
    halve(sums + warp, order.warp_width, 1);
  return halve(sums, order.threads / order.warp_width, order.warp_width);
}

// Rule N3: mean(x.float() ** 2) over one row of bf16; the division is a product with 1 / width.
EXACT_HD float mean_square(const uint16_t* x, int64_t width, int64_t rows) {
  const auto square = [x](int64_t i) {
    const float value = bf16_to_float(x[i]);
    return value * value;
  };
  return row_sum(row_sum_order(width, rows), width, square) * (1.0f / static_cast<float>(width));
}

// The sum of F.rms_norm: thread t of 128 takes the 4-element groups t, t + 128, ... in one
// ascending sum (the square of a bf16 is exact, so fused or not is the same).
EXACT_HD float fused_sum_of_thread(const uint16_t* x, int64_t width, int thread) {
  float sum = 0.0f;
  for (int64_t group = thread; group * 4 < width; group += 128)
    for (int64_t i = group * 4; i < group * 4 + 4; i++) {
      const float value = bf16_to_float(x[i]);
      sum = fma_rn(value, value, sum);
    }
  return sum;
}

// Rule N2, form `fused`: a true division by the width. width % 4 == 0.
EXACT_HD float fused_mean_square(const uint16_t* x, int64_t width) {
  float sums[128];
  for (int t = 0; t < 128; t++) sums[t] = fused_sum_of_thread(x, width, t);
  for (int warp = 0; warp < 128; warp += 32) halve(sums + warp, 32, 1);
  return halve(sums, 4, 32) / static_cast<float>(width);
}

}  // namespace exact::contract
