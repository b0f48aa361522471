// chain_scalar.cc owns the chain for any CPU: plain loops, which the compiler may vectorise with
// whatever the build's baseline has. See chain.h for why it is exact.
#include "kernels/base/bf16.h"
#include "kernels/contract/tensor_core.h"
#include "kernels/cpu/chain.h"

namespace exact::cpu {
namespace {

constexpr int kLanes = 8;

uint8_t is_wild(uint16_t value) {
  return (value & 0x7fff) > kLargestTame ? 1 : 0;
}

void widen_row(const uint16_t* row, int64_t count, const WidenedRow& out) {
  for (int64_t step = 0; step * kChainStep < count; step++) {
    uint8_t wild = 0;
    for (int64_t k = step * kChainStep; k < (step + 1) * kChainStep; k++) {
      const uint16_t value = k < count ? row[k] : uint16_t{0};
      const auto exponent = static_cast<uint16_t>((value & 0x7f80) - (127 << 7));
      out.values[k] = bf16_to_float(value);
      out.exponents[k] = static_cast<uint32_t>(exponent) << 16 | exponent;
      wild |= is_wild(value);
    }
    out.wild[step] = wild;
  }
}

void find_wild(const uint16_t* panel, int64_t steps, uint8_t* wild) {
  constexpr int64_t kStepValues = kChainStep * kPanelColumns;
  for (int64_t step = 0; step < steps; step++) {
    uint8_t any = 0;
    for (int64_t i = 0; i < kStepValues; i++) any |= is_wild(panel[step * kStepValues + i]);
    wild[step] = any;
  }
}

// fp32 of an integer, truncated towards zero: the bits below the leading 24 are cleared first.
float truncate_to_float(int32_t value) {
  const uint32_t bits = static_cast<uint32_t>(value);
  const uint32_t magnitude = value < 0 ? 0u - bits : bits;
  uint32_t excess = magnitude >> 24;
  excess |= excess >> 1;
  excess |= excess >> 2;
  excess |= excess >> 4;
  const float kept = static_cast<float>(static_cast<int32_t>(magnitude & ~excess));
  return value < 0 ? -kept : kept;
}

// One step of a panel, widened once for all rows.
struct WidenedStep {
  const uint16_t* raw;
  float values[kChainStep][kPanelColumns];
  int16_t exponents[kChainStep][kPanelColumns];  // fields, times 2^7

  explicit WidenedStep(const uint16_t* panel) : raw(panel) {
    for (int i = 0; i < kChainStep; i++) {
      for (int j = 0; j < kPanelColumns; j++) {
        const uint16_t value = panel[i * kPanelColumns + j];
        values[i][j] = bf16_to_float(value);
        exponents[i][j] = static_cast<int16_t>(value & 0x7f80);
      }
    }
  }
};

// Sums of the 17 terms of some lanes, in units of 2^(e_max - 25).
struct LaneSums {
  int32_t low[kLanes];   // the accumulator and products 0 to 7
  int32_t high[kLanes];  // products 8 to 15
};

// Every lane is inside the window: nothing here can overflow.
void sum_terms(const float* row, const WidenedStep& panel, int first, const float* accumulators,
               const float* scale, LaneSums& sums) {
  for (int j = 0; j < kLanes; j++) {
    sums.low[j] = static_cast<int32_t>(accumulators[j] * scale[j]);
    sums.high[j] = 0;
  }
  for (int i = 0; i < 8; i++) {
    for (int j = 0; j < kLanes; j++) {
      const float product = row[i] * panel.values[i][first + j];
      sums.low[j] += static_cast<int32_t>(product * scale[j]);
    }
  }
  for (int i = 8; i < 16; i++) {
    for (int j = 0; j < kLanes; j++) {
      const float product = row[i] * panel.values[i][first + j];
      sums.high[j] += static_cast<int32_t>(product * scale[j]);
    }
  }
}

bool all_products_zero(const float* row, const uint16_t* panel) {
  for (int i = 0; i < kChainStep; i++) {
    if (row[i] != 0.0f && (panel[i * kPanelColumns] & 0x7fff) != 0) return false;
  }
  return true;
}

// One step of 8 lanes, at least one of which is outside the window. A zero times something wild may
// be a NaN: in a wild step nothing is known to be zero.
void careful_step(const float* row, const uint16_t* panel, bool wild, float* accumulators) {
  for (int j = 0; j < kLanes; j++) {
    float& c = accumulators[j];
    if (c != c) {
      c = float_from_bits(contract::kCanonicalNan);
    } else if (!wild && c == 0.0f && all_products_zero(row, panel + j)) {
      c = 0.0f;
    } else {
      c = literal_step(row, panel + j, c);
    }
  }
}

// Columns [first, first + kLanes) of a step; accumulators are theirs.
void step_lanes(const float* row, const WidenedStep& panel, int first, const int16_t* largest,
                int wild, float* accumulators) {
  float scale[kLanes], unscale[kLanes];
  int outside = wild;
  for (int j = 0; j < kLanes; j++) {
    const auto field = static_cast<int32_t>(float_bits(accumulators[j]) >> 23 & 255u);
    const int32_t product = largest[j] >> 7;
    const int32_t exponent = (product > field ? product : field) - 127;
    outside |= static_cast<int>(exponent <= -100) | static_cast<int>(exponent > 25);
    scale[j] = float_from_bits(static_cast<uint32_t>(152 - exponent) << 23);
    unscale[j] = float_from_bits(static_cast<uint32_t>(exponent + 102) << 23);
  }
  if (outside != 0) return careful_step(row, panel.raw + first, wild != 0, accumulators);
  LaneSums sums;
  sum_terms(row, panel, first, accumulators, scale, sums);
  int overflow = 0;
  float results[kLanes];
  for (int j = 0; j < kLanes; j++) {
    const auto sum = static_cast<int32_t>(static_cast<uint32_t>(sums.low[j]) +
                                          static_cast<uint32_t>(sums.high[j]));
    // -2^31 does not overflow, but its magnitude does not fit truncate_to_float.
    overflow |= ((sums.low[j] ^ sum) & (sums.high[j] ^ sum)) | -static_cast<int>(sum == INT32_MIN);
    results[j] = truncate_to_float(sum) * unscale[j];
  }
  if (overflow < 0) return careful_step(row, panel.raw + first, wild != 0, accumulators);
  for (int j = 0; j < kLanes; j++) accumulators[j] = results[j];
}

// The largest exponent field of the 16 products of each of the 32 lanes, times 2^7.
void largest_exponents(const uint32_t* row, const WidenedStep& panel, int16_t* largest) {
  for (int j = 0; j < kPanelColumns; j++) largest[j] = INT16_MIN;
  for (int i = 0; i < kChainStep; i++) {
    const auto exponent = static_cast<int16_t>(row[i]);
    for (int j = 0; j < kPanelColumns; j++) {
      const auto sum = static_cast<int16_t>(exponent + panel.exponents[i][j]);
      largest[j] = largest[j] > sum ? largest[j] : sum;
    }
  }
}

void chain(const ChainRows& rows, const ChainPanel& panel, int64_t steps) {
  for (int64_t step = 0; step < steps; step++) {
    const WidenedStep widened(panel.values + step * kChainStep * kPanelColumns);
    for (int64_t r = 0; r < rows.row_count; r++) {
      const int64_t at = r * rows.row_stride + step * kChainStep;
      const int wild = rows.wild[at / kChainStep] | panel.wild[step];
      float* accumulators = rows.accumulators + r * rows.accumulator_stride;
      int16_t largest[kPanelColumns];
      largest_exponents(rows.exponents + at, widened, largest);
      for (int j = 0; j < kPanelColumns; j += kLanes) {
        step_lanes(rows.values + at, widened, j, largest + j, wild, accumulators + j);
      }
    }
  }
}

}  // namespace

const ChainKernels kScalarChain = {widen_row, find_wild, chain};

}  // namespace exact::cpu
