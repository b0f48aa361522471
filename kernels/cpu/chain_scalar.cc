// chain_scalar.cc owns the chain for any CPU: plain loops, which the compiler may vectorise with
// whatever the build's baseline has. See chain.h for why it is exact.
#include "kernels/base/bf16.h"
#include "kernels/cpu/chain.h"

namespace exact::cpu {
namespace {

constexpr int kLanes = 8;

// The unbiased exponent of an operand, or a sentinel.
int operand_exponent(uint16_t value) {
  const int field = value >> 7 & 255;
  if ((value & 0x7fff) == 0) return kZeroExponent;
  if (field > kTameExponent + 127) return kWildExponent;
  return (field == 0 ? 1 : field) - 127;
}

void expand_row(const uint16_t* row, int64_t count, int64_t padded_count, float* values,
                uint32_t* exponents) {
  for (int64_t k = 0; k < padded_count; k++) {
    const uint16_t value = k < count ? row[k] : uint16_t{0};
    const auto biased = static_cast<uint16_t>(operand_exponent(value) + 127);
    values[k] = bf16_to_float(value);
    exponents[k] = static_cast<uint32_t>(biased) << 16 | biased;
  }
}

void expand_panel(const uint16_t* source, int64_t source_stride, int64_t k_count, int64_t columns,
                  ChainPanel panel) {
  for (int64_t k = 0; k < k_count; k++) {
    for (int64_t j = 0; j < columns; j++) {
      const uint16_t value = source[k * source_stride + j];
      panel.values[k * kPanelColumns + j] = bf16_to_float(value);
      panel.exponents[k * kPanelColumns + j] = static_cast<int16_t>(operand_exponent(value));
    }
  }
}

// fp32 of an integer, truncated towards zero: the bits below the leading 24 are cleared first.
float truncate_to_float(int32_t value) {
  const uint32_t magnitude =
      value < 0 ? 0u - static_cast<uint32_t>(value) : static_cast<uint32_t>(value);
  uint32_t excess = magnitude >> 24;
  excess |= excess >> 1;
  excess |= excess >> 2;
  excess |= excess >> 4;
  const float kept = static_cast<float>(static_cast<int32_t>(magnitude & ~excess));
  return value < 0 ? -kept : kept;
}

// Sums of the 17 terms of some lanes, in units of 2^(e_max - 25).
struct LaneSums {
  int32_t low[kLanes];   // the accumulator and products 0 to 7
  int32_t high[kLanes];  // products 8 to 15
};

// Every lane is inside the window: nothing here can overflow.
void sum_terms(const float* row, const float* panel, const float* accumulators, const float* scale,
               LaneSums& sums) {
  for (int j = 0; j < kLanes; j++) {
    sums.low[j] = static_cast<int32_t>(accumulators[j] * scale[j]);
    sums.high[j] = 0;
  }
  for (int i = 0; i < 8; i++) {
    for (int j = 0; j < kLanes; j++) {
      sums.low[j] += static_cast<int32_t>(row[i] * panel[i * kPanelColumns + j] * scale[j]);
    }
  }
  for (int i = 8; i < 16; i++) {
    for (int j = 0; j < kLanes; j++) {
      sums.high[j] += static_cast<int32_t>(row[i] * panel[i * kPanelColumns + j] * scale[j]);
    }
  }
}

// One step of 8 lanes, at least one of which is outside the window.
void careful_step(const float* row, const float* panel, const int16_t* largest,
                  float* accumulators) {
  for (int j = 0; j < kLanes; j++) {
    const bool zeros = largest[j] == -kExponentClamp && accumulators[j] == 0.0f;
    accumulators[j] = zeros ? 0.0f : literal_step(row, panel + j, accumulators[j]);
  }
}

void step_lanes(const float* row, const float* panel, const int16_t* largest, float* accumulators) {
  float scale[kLanes], unscale[kLanes];
  int outside = 0;
  for (int j = 0; j < kLanes; j++) {
    const auto field = static_cast<int32_t>(float_bits(accumulators[j]) >> 23 & 255u);
    const int32_t exponent = (largest[j] > field ? largest[j] : field) - 127;
    outside |= static_cast<int>(exponent <= -100) | static_cast<int>(exponent > 25);
    scale[j] = float_from_bits(static_cast<uint32_t>(152 - exponent) << 23);
    unscale[j] = float_from_bits(static_cast<uint32_t>(exponent + 102) << 23);
  }
  if (outside != 0) return careful_step(row, panel, largest, accumulators);
  LaneSums sums;
  sum_terms(row, panel, accumulators, scale, sums);
  int overflow = 0;
  float results[kLanes];
  for (int j = 0; j < kLanes; j++) {
    const auto sum = static_cast<int32_t>(static_cast<uint32_t>(sums.low[j]) +
                                          static_cast<uint32_t>(sums.high[j]));
    // -2^31 does not overflow, but its magnitude does not fit truncate_to_float.
    overflow |= ((sums.low[j] ^ sum) & (sums.high[j] ^ sum)) | -static_cast<int>(sum == INT32_MIN);
    results[j] = truncate_to_float(sum) * unscale[j];
  }
  if (overflow < 0) return careful_step(row, panel, largest, accumulators);
  for (int j = 0; j < kLanes; j++) accumulators[j] = results[j];
}

// The largest biased exponent of the 16 products of each of the 32 lanes.
void largest_exponents(const uint32_t* row, const int16_t* panel, int16_t* largest) {
  for (int j = 0; j < kPanelColumns; j++) largest[j] = -kExponentClamp;
  for (int i = 0; i < kChainStep; i++) {
    const auto exponent = static_cast<int16_t>(row[i]);
    for (int j = 0; j < kPanelColumns; j++) {
      const auto sum = static_cast<int16_t>(exponent + panel[i * kPanelColumns + j]);
      largest[j] = largest[j] > sum ? largest[j] : sum;
    }
  }
  for (int j = 0; j < kPanelColumns; j++) {
    largest[j] = largest[j] < kExponentClamp ? largest[j] : int16_t{kExponentClamp};
  }
}

void chain(const ChainRows& rows, ChainPanel panel, int64_t steps) {
  for (int64_t r = 0; r < rows.row_count; r++) {
    const float* values = rows.values + r * rows.row_stride;
    const uint32_t* exponents = rows.exponents + r * rows.row_stride;
    float* accumulators = rows.accumulators + r * rows.accumulator_stride;
    for (int64_t step = 0; step < steps; step++) {
      const int64_t k = step * kChainStep;
      const float* panel_values = panel.values + k * kPanelColumns;
      int16_t largest[kPanelColumns];
      largest_exponents(exponents + k, panel.exponents + k * kPanelColumns, largest);
      for (int j = 0; j < kPanelColumns; j += kLanes) {
        step_lanes(values + k, panel_values + j, largest + j, accumulators + j);
      }
    }
  }
}

}  // namespace

const ChainKernels kScalarChain = {expand_row, expand_panel, chain};

}  // namespace exact::cpu
