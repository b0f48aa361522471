#include "kernels/cpu/linear.h"

#include <algorithm>

namespace exact::cpu {
namespace {

// Rows that are widened and multiplied at a time: their sums fit L1 beside a widened block.
constexpr int64_t kRowBlock = 128;
// Panel rows that are widened at a time: 24 KiB.
constexpr int64_t kWidenedRows = 128;

struct WidenedRows {
  float* values;
  uint32_t* exponents;
  int64_t stride;
};

struct PanelScratch {
  ChainPanel panel;
  float* sums;  // [rows][32]
  size_t bytes;

  PanelScratch(void* base, int64_t rows) {
    ScratchCutter cutter(base);
    panel.values = cutter.take<float>(kWidenedRows * kPanelColumns);
    panel.exponents = cutter.take<int16_t>(kWidenedRows * kPanelColumns);
    sums = cutter.take<float>(static_cast<size_t>(rows * kPanelColumns));
    bytes = cutter.used();
  }
};

// All of one panel's outputs for `rows` widened rows.
void multiply_panel(const CpuContext& context, const WidenedRows& x, int64_t row_count,
                    const uint16_t* packed, int64_t k_count, const PanelScratch& scratch) {
  std::fill_n(scratch.sums, row_count * kPanelColumns, 0.0f);
  for (int64_t k = 0; k < k_count; k += kWidenedRows) {
    const int64_t size = std::min(kWidenedRows, k_count - k);
    context.chain.expand_panel(packed + k * kPanelColumns, kPanelColumns, size, kPanelColumns,
                               scratch.panel);
    const ChainRows rows{x.values + k, x.exponents + k, x.stride,
                         scratch.sums, kPanelColumns,   row_count};
    context.chain.chain(rows, scratch.panel, size / kChainStep);
  }
}

void widen_rows(CpuContext& context, const TensorView& x, int64_t first, int64_t count,
                const WidenedRows& out) {
  context.pool.run(count, [&](int64_t r, int) {
    context.chain.expand_row(x.row<const uint16_t>(first + r), x.columns, out.stride,
                             out.values + r * out.stride, out.exponents + r * out.stride);
  });
}

}  // namespace

size_t packed_bytes(int64_t out_features, int64_t in_features) {
  return static_cast<size_t>(round_up(out_features, kPanelColumns) *
                             round_up(in_features, kChainStep)) *
         sizeof(uint16_t);
}

void pack_weight(CpuContext& context, const TensorView& weight, uint16_t* packed) {
  const int64_t k_count = round_up(weight.columns, kChainStep);
  context.pool.run(piece_count(weight.rows, kPanelColumns), [&](int64_t index, int) {
    uint16_t* panel = packed + index * kPanelColumns * k_count;
    std::fill_n(panel, kPanelColumns * k_count, uint16_t{0});
    const int64_t first = index * kPanelColumns;
    const int64_t columns = std::min<int64_t>(kPanelColumns, weight.rows - first);
    for (int64_t k_block = 0; k_block < weight.columns; k_block += kPanelColumns) {
      const int64_t k_end = std::min(weight.columns, k_block + kPanelColumns);
      for (int64_t j = 0; j < columns; j++) {
        const uint16_t* row = weight.row<const uint16_t>(first + j);
        for (int64_t k = k_block; k < k_end; k++) panel[k * kPanelColumns + j] = row[k];
      }
    }
  });
}

Status linear(CpuContext& context, const TensorView& x, const LinearWeight& weight,
              const uint16_t* bias, const TensorView& out) {
  const int64_t k_count = round_up(weight.in_features, kChainStep);
  const auto* packed = static_cast<const uint16_t*>(weight.storage.data());
  const int64_t most_rows = std::min(kRowBlock, x.rows);
  const auto widened_count = static_cast<size_t>(most_rows * k_count);
  void* widened = context.shared_scratch.reserve(widened_count * 8);
  if (widened == nullptr) return CpuContext::out_of_memory();
  EXACT_RETURN_IF_ERROR(context.reserve_thread_scratch(PanelScratch(nullptr, most_rows).bytes));
  const WidenedRows block{static_cast<float*>(widened),
                          static_cast<uint32_t*>(widened) + widened_count, k_count};
  for (int64_t first = 0; first < x.rows; first += kRowBlock) {
    const int64_t row_count = std::min(kRowBlock, x.rows - first);
    widen_rows(context, x, first, row_count, block);
    context.pool.run(
        piece_count(weight.out_features, kPanelColumns), [&](int64_t index, int thread) {
          const PanelScratch scratch(context.thread_scratch[static_cast<size_t>(thread)].reserve(0),
                                     most_rows);
          multiply_panel(context, block, row_count, packed + index * kPanelColumns * k_count,
                         k_count, scratch);
          const int64_t n = index * kPanelColumns;
          const int64_t columns = std::min<int64_t>(kPanelColumns, weight.out_features - n);
          for (int64_t r = 0; r < row_count; r++) {
            context.rows.finish_linear(scratch.sums + r * kPanelColumns,
                                       bias == nullptr ? nullptr : bias + n, columns,
                                       out.row<uint16_t>(first + r) + n);
          }
        });
  }
  return {};
}

}  // namespace exact::cpu
