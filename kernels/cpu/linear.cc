#include "kernels/cpu/linear.h"

#include <algorithm>

#include "kernels/cpu/widened_rows.h"

namespace exact::cpu {
namespace {

// Rows that are widened and multiplied at a time: their sums fit L1 beside a block of a panel.
constexpr int64_t kRowBlock = 128;
// Elements of a chain that are multiplied at a time, for all rows: 16 KiB of a panel.
constexpr int64_t kChainBlock = 256;
// Steps ahead of a chain that its panel is fetched, into the next block and panel too: what a
// single row waits for is memory.
constexpr int64_t kFetchAhead = 12;

// The addresses inside packed weights.
struct PackedPanels {
  int64_t panel_count;
  int64_t k_count;
  uint16_t* values;
  uint8_t* wild;

  PackedPanels(int64_t out_features, int64_t in_features, void* storage)
      : panel_count(piece_count(out_features, kPanelColumns)),
        k_count(round_up(in_features, kChainStep)),
        values(static_cast<uint16_t*>(storage)),
        wild(reinterpret_cast<uint8_t*>(values + panel_count * k_count * kPanelColumns)) {}

  uint16_t* panel_values(int64_t index) const { return values + index * k_count * kPanelColumns; }
  uint8_t* panel_wild(int64_t index) const { return wild + index * (k_count / kChainStep); }
};

// The sums of one panel's columns for all widened rows.
void multiply_panel(CpuContext& context, int thread, const WidenedRows& x, int64_t row_count,
                    const PackedPanels& packed, int64_t index, float* sums) {
  std::fill_n(sums, row_count * kPanelColumns, 0.0f);
  for (int64_t k = 0; k < packed.k_count; k += kChainBlock) {
    const int64_t size = std::min(kChainBlock, packed.k_count - k);
    const uint16_t* values = packed.panel_values(index) + k * kPanelColumns;
    const int64_t ahead = std::min(kFetchAhead * kChainStep,
                                   (packed.panel_count - index) * packed.k_count - k - size);
    const ChainPanel panel{values, packed.panel_wild(index) + k / kChainStep,
                           values + ahead * kPanelColumns};
    context.chain(thread, x.operands(0, row_count, k, sums, kPanelColumns), panel,
                  size / kChainStep);
  }
}

}  // namespace

size_t packed_bytes(int64_t out_features, int64_t in_features) {
  const int64_t panel_count = piece_count(out_features, kPanelColumns);
  const int64_t k_count = round_up(in_features, kChainStep);
  return static_cast<size_t>(panel_count * k_count * kPanelColumns) * sizeof(uint16_t) +
         static_cast<size_t>(panel_count * (k_count / kChainStep));
}

void pack_weight(CpuContext& context, const TensorView& weight, int64_t first_row,
                 LinearWeight& out) {
  const PackedPanels packed(out.out_features, out.in_features, out.storage.data());
  const int64_t end_row = first_row + weight.rows;
  const int64_t first_panel = first_row / kPanelColumns;
  context.pool.run(piece_count(end_row, kPanelColumns) - first_panel, [&](int64_t i, int) {
    const int64_t index = first_panel + i;
    uint16_t* panel = packed.panel_values(index);
    // A panel may hold rows of the matrices before and after; columns that belong to none, and the
    // padding of k, are zero.
    const int64_t panel_row = index * kPanelColumns;
    const int64_t begin = std::max(first_row - panel_row, int64_t{0});
    const int64_t end = std::min<int64_t>(kPanelColumns, end_row - panel_row);
    const bool last = end_row == out.out_features;
    for (int64_t j = begin; j < (last ? kPanelColumns : end); j++) {
      for (int64_t k = j < end ? weight.columns : 0; k < packed.k_count; k++) {
        panel[k * kPanelColumns + j] = 0;
      }
    }
    for (int64_t k_block = 0; k_block < weight.columns; k_block += kPanelColumns) {
      const int64_t k_end = std::min(weight.columns, k_block + kPanelColumns);
      for (int64_t j = begin; j < end; j++) {
        const uint16_t* row = weight.row<const uint16_t>(panel_row + j - first_row);
        for (int64_t k = k_block; k < k_end; k++) panel[k * kPanelColumns + j] = row[k];
      }
    }
    context.kernels.find_wild(panel, packed.k_count / kChainStep, packed.panel_wild(index));
  });
}

void unpack_weight(CpuContext& context, const LinearWeight& weight, int64_t first_row,
                   const TensorView& out) {
  const PackedPanels packed(weight.out_features, weight.in_features, weight.storage.data());
  const int64_t end_row = first_row + out.rows;
  const int64_t first_panel = first_row / kPanelColumns;
  context.pool.run(piece_count(end_row, kPanelColumns) - first_panel, [&](int64_t i, int) {
    const int64_t index = first_panel + i;
    const uint16_t* panel = packed.panel_values(index);
    const int64_t panel_row = index * kPanelColumns;
    const int64_t begin = std::max(first_row - panel_row, int64_t{0});
    const int64_t end = std::min<int64_t>(kPanelColumns, end_row - panel_row);
    for (int64_t k_block = 0; k_block < out.columns; k_block += kPanelColumns) {
      const int64_t k_end = std::min(out.columns, k_block + kPanelColumns);
      for (int64_t j = begin; j < end; j++) {
        auto* row = out.row<uint16_t>(panel_row + j - first_row);
        for (int64_t k = k_block; k < k_end; k++) row[k] = panel[k * kPanelColumns + j];
      }
    }
  });
}

Status linear(CpuContext& context, const TensorView& x, const LinearWeight& weight,
              const uint16_t* bias, const TensorView& out) {
  const PackedPanels packed(weight.out_features, weight.in_features, weight.storage.data());
  const int64_t most_rows = std::min(kRowBlock, x.rows);
  ScratchCutter measure(nullptr);
  WidenedRows::take(measure, most_rows, packed.k_count);
  void* memory = context.shared_scratch.reserve(measure.used());
  if (memory == nullptr) return CpuContext::out_of_memory();
  EXACT_RETURN_IF_ERROR(context.reserve_thread_scratch(
      static_cast<size_t>(most_rows * kPanelColumns) * sizeof(float)));
  ScratchCutter cutter(memory);
  const WidenedRows widened = WidenedRows::take(cutter, most_rows, packed.k_count);
  for (int64_t first = 0; first < x.rows; first += kRowBlock) {
    const int64_t row_count = std::min(kRowBlock, x.rows - first);
    context.pool.run(row_count, [&](int64_t r, int) {
      context.kernels.widen_row(x.row<const uint16_t>(first + r), x.columns, widened.row(r));
    });
    context.pool.run(packed.panel_count, [&](int64_t index, int thread) {
      auto* sums = static_cast<float*>(context.scratch_of(thread));
      multiply_panel(context, thread, widened, row_count, packed, index, sums);
      const int64_t n = index * kPanelColumns;
      const int64_t columns = std::min<int64_t>(kPanelColumns, weight.out_features - n);
      for (int64_t r = 0; r < row_count; r++) {
        context.rows.finish_linear(sums + r * kPanelColumns, bias == nullptr ? nullptr : bias + n,
                                   columns, out.row<uint16_t>(first + r) + n);
      }
    });
  }
  return {};
}

}  // namespace exact::cpu
