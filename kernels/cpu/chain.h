// chain.h owns the interface of the chain kernels: rule N1's ascending chain of k16 steps, for some
// rows against a panel of 32 columns. One table of functions an instruction set; equal bits.
//
// How a step is computed fast and exactly. An operand is widened once: its fp32 value (a product of
// two is exact: 16 bits) and its biased exponent. Per step and lane: e_max is the largest exponent
// of the 17 terms; every product is scaled by 2^(25 - e_max) and converted to int32, which
// truncates towards zero, as T() does; the integers are added in two halves that cannot overflow,
// and the sum is converted to fp32 towards zero. This holds for e_max in (-100, 25] and no int32
// overflow; any other lane is computed by contract::tensor_core_step. Outside the window lie also
//   - operands with an exponent above kTameExponent, infinities and NaNs (kWildExponent), and
//   - sums of nothing but zeros, which are +0 and get a short cut: padding must not be slow.
// A zero carries kZeroExponent, below anything: by the rule it counts as 2^-126 times the other
// operand, at most 2^-106 here, which cannot be the largest exponent inside the window.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_backend.h"

namespace exact::cpu {

inline constexpr int kPanelColumns = 32;
inline constexpr int kChainStep = 16;
inline constexpr int kTameExponent = 20;
inline constexpr int kZeroExponent = -1000;
inline constexpr int kWildExponent = 3000;
inline constexpr int kExponentClamp = 255;  // of a product, biased: keeps shifts by 23 in range

constexpr int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Rows widened for the chain. Row r begins at r * row_stride; its k-th value lies at [k].
struct ChainRows {
  const float* values = nullptr;
  const uint32_t* exponents = nullptr;  // biased (e + 127) as int16, in both halves of the word
  int64_t row_stride = 0;
  float* accumulators = nullptr;  // 32 a row, in and out
  int64_t accumulator_stride = 0;
  int64_t row_count = 0;

  ChainRows at_step(int64_t step) const {
    ChainRows rows = *this;
    rows.values += step * kChainStep;
    rows.exponents += step * kChainStep;
    return rows;
  }
};

// A panel of 32 columns widened for the chain, [k][32].
struct ChainPanel {
  float* values = nullptr;
  int16_t* exponents = nullptr;  // not biased
};

struct ChainKernels {
  // Widens `count` bf16 values and pads them with zeros to `padded_count`.
  void (*expand_row)(const uint16_t* row, int64_t count, int64_t padded_count, float* values,
                     uint32_t* exponents);
  // Widens columns [0, columns) of k_count panel rows that lie source_stride apart in memory;
  // columns % 16 == 0. The panel's rows are 32 apart.
  void (*expand_panel)(const uint16_t* source, int64_t source_stride, int64_t k_count,
                       int64_t columns, ChainPanel panel);
  // accumulators[r][j] = the chain of `steps` steps of row r and column j, going on from what
  // accumulators hold.
  void (*chain)(const ChainRows& rows, ChainPanel panel, int64_t steps);
};

// Null for an instruction set that this build or machine lacks.
const ChainKernels* chain_kernels(CpuIsa isa);

extern const ChainKernels kScalarChain;
#if defined(__x86_64__)
extern const ChainKernels kAvx2Chain;
extern const ChainKernels kAvx512Chain;
#endif

// One lane by the letter of the rule: step operands as the kernels hold them.
float literal_step(const float* row_values, const float* panel_column, float accumulator);

}  // namespace exact::cpu
