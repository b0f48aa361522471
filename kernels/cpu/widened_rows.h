// widened_rows.h owns a block of operand rows in working memory, as the chain wants them.
#pragma once

#include "kernels/cpu/chain.h"
#include "kernels/cpu/scratch.h"

namespace exact::cpu {

struct WidenedRows {
  WidenedRow first;    // row 0
  int64_t stride = 0;  // elements from a row to the next; a whole number of steps

  static WidenedRows take(ScratchCutter& cutter, int64_t row_count, int64_t k_count) {
    WidenedRows rows;
    rows.stride = round_up(k_count, kChainStep);
    const auto elements = static_cast<size_t>(row_count * rows.stride);
    rows.first.values = cutter.take<float>(elements);
    rows.first.exponents = cutter.take<uint32_t>(elements);
    rows.first.wild = cutter.take<uint8_t>(elements / kChainStep);
    return rows;
  }

  WidenedRow row(int64_t index) const {
    const int64_t at = index * stride;
    return {first.values + at, first.exponents + at, first.wild + at / kChainStep};
  }

  // Rows from `row_index` on, from element k on (k % 16 == 0), as operands.
  ChainRows operands(int64_t row_index, int64_t row_count, int64_t k, float* accumulators,
                     int64_t accumulator_stride) const {
    const WidenedRow at = row(row_index);
    return {at.values + k,      at.exponents + k, at.wild + k / kChainStep, stride, accumulators,
            accumulator_stride, row_count};
  }
};

}  // namespace exact::cpu
