// chain.h owns the interface of the chain kernels: rule N1's ascending chain of k16 steps, for some
// rows against a panel of 32 columns. One table of functions an instruction set; equal bits.
//
// How a step is computed fast and exactly. A row is widened once: its fp32 values (a product of two
// is exact: 16 bits) and their exponents. A panel stays bf16: a value is a shift or a mask away, an
// exponent a mask. Per step and lane: e_max is the largest exponent of the 17 terms; every product
// is scaled by 2^(25 - e_max), which is an integer addition to its bits, and converted to int32,
// which truncates towards zero, as T() does; the integers are added in two halves that cannot
// overflow, and the sum is converted to fp32 towards zero. This holds for e_max in (-100, 25], no
// int32 overflow, and tame operands: finite, exponents at most kTameExponent. Any other lane is
// computed by contract::tensor_core_step, except for two that must not be slow: sums of nothing but
// zeros are +0 (padding), and a NaN stays a NaN (a row that a broken model poisoned).
//
// Zeros and subnormals may count as 2^-127 here: the rule gives them exponents of at most
// -126 + kTameExponent = -106, which cannot be the largest inside the window.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_backend.h"

namespace exact::cpu {

inline constexpr int kPanelColumns = 32;
inline constexpr int kChainStep = 16;
inline constexpr int kTameExponent = 20;
// Magnitudes of bf16 bits up to this one are tame.
inline constexpr int kLargestTame = (kTameExponent + 127) << 7 | 0x7f;

constexpr int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Where an operand row is widened to; k_count % 16 == 0 elements, k_count / 16 steps.
struct WidenedRow {
  float* values = nullptr;
  uint32_t* exponents = nullptr;  // (e << 7) as int16, in both halves of the word
  uint8_t* wild = nullptr;        // a step with a value that is not tame
};

// Rows widened for the chain. Row r begins r * row_stride elements (row_stride / 16 steps) on.
struct ChainRows {
  const float* values = nullptr;
  const uint32_t* exponents = nullptr;
  const uint8_t* wild = nullptr;
  int64_t row_stride = 0;
  float* accumulators = nullptr;  // 32 a row, in and out
  int64_t accumulator_stride = 0;
  int64_t row_count = 0;
};

// A panel of 32 columns, bf16 [k][32].
struct ChainPanel {
  const uint16_t* values = nullptr;
  const uint8_t* wild = nullptr;  // a step with a value that is not tame
  // What will be multiplied next: fetched meanwhile, as much as this panel's steps take. Not null.
  const uint16_t* next = nullptr;
};

struct ChainKernels {
  // Widens `count` bf16 values and pads them with zeros to a whole number of steps.
  void (*widen_row)(const uint16_t* row, int64_t count, const WidenedRow& out);
  // Finds the steps of a panel that hold a value that is not tame.
  void (*find_wild)(const uint16_t* panel, int64_t steps, uint8_t* wild);
  // accumulators[r][j] = the chain of `steps` steps of row r and column j, going on from what
  // accumulators hold.
  void (*chain)(const ChainRows& rows, const ChainPanel& panel, int64_t steps);
};

// Null for an instruction set that this build or machine lacks.
const ChainKernels* chain_kernels(CpuIsa isa);

extern const ChainKernels kScalarChain;
#if defined(__x86_64__)
extern const ChainKernels kAvx2Chain;
extern const ChainKernels kAvx512Chain;
#endif

// One lane of a step by the letter of the rule; `panel` points at the lane's column.
float literal_step(const float* row, const uint16_t* panel, float accumulator);

}  // namespace exact::cpu
