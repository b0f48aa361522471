// store_kv.cc owns the writing of keys and values into their pages.
#include <algorithm>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/kv_layout.h"

namespace exact::cpu {
namespace {

void store_head(const TensorView& keys, const TensorView& values, const SequenceChunk& chunk,
                const HeadPages& pages, int64_t column) {
  for (int32_t i = 0; i < chunk.row_count; i++) {
    const int64_t position = int64_t{chunk.first_position} + i;
    const int32_t page = chunk.pages[static_cast<size_t>(position / pages.page_size)];
    const int64_t slot = position % pages.page_size;
    const uint16_t* key = keys.row<const uint16_t>(chunk.first_row + i) + column;
    const uint16_t* value = values.row<const uint16_t>(chunk.first_row + i) + column;
    uint16_t* key_column = pages.key_panel(page, slot) + slot % pages.key_run;
    for (int64_t d = 0; d < pages.head_width; d++) key_column[d * pages.key_run] = key[d];
    for (int64_t d = 0; d < pages.head_width; d += kPanelColumns) {
      std::copy_n(value + d, std::min<int64_t>(kPanelColumns, pages.head_width - d),
                  pages.value_panel(page, slot, d));
    }
  }
}

}  // namespace

size_t kv_bytes(const KvGeometry& geometry) {
  const int64_t page_elements =
      geometry.kv_heads * (HeadPages::key_elements(geometry) + HeadPages::value_elements(geometry));
  return static_cast<size_t>(geometry.layers) * static_cast<size_t>(geometry.pages) *
         static_cast<size_t>(page_elements) * sizeof(uint16_t);
}

void store_kv(CpuContext& context, const TensorView& keys, const TensorView& values,
              std::span<const SequenceChunk> chunks, int32_t layer, const KvCache& cache) {
  const int64_t heads = cache.geometry.kv_heads;
  context.pool.run(static_cast<int64_t>(chunks.size()) * heads, [&](int64_t index, int) {
    const auto head = static_cast<int32_t>(index % heads);
    store_head(keys, values, chunks[static_cast<size_t>(index / heads)],
               HeadPages(cache, layer, head), int64_t{head} * cache.geometry.head_width);
  });
}

}  // namespace exact::cpu
