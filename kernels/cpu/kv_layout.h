// kv_layout.h owns the addresses inside the paged cache (attention.h says what they mean).
#pragma once

#include <algorithm>

#include "kernels/backend.h"
#include "kernels/cpu/chain.h"

namespace exact::cpu {

// One kv head of one layer.
struct HeadPages {
  uint16_t* layer = nullptr;
  int64_t page_elements = 0;  // of all heads, keys and values
  int64_t key_offset = 0;
  int64_t value_offset = 0;
  int64_t page_size = 0;
  int64_t head_width = 0;
  int64_t key_run = 0;  // keys of a page that lie in one panel: 32, or 16 in pages of 16

  static int64_t key_elements(const KvGeometry& geometry) {
    return int64_t{geometry.head_width} * geometry.page_size;
  }
  static int64_t value_elements(const KvGeometry& geometry) {
    return round_up(geometry.head_width, kPanelColumns) * geometry.page_size;
  }

  HeadPages(const KvCache& cache, int32_t layer_index, int32_t kv_head) {
    const KvGeometry& geometry = cache.geometry;
    page_elements = geometry.kv_heads * (key_elements(geometry) + value_elements(geometry));
    layer = static_cast<uint16_t*>(cache.storage.data()) +
            int64_t{layer_index} * geometry.pages * page_elements;
    key_offset = kv_head * key_elements(geometry);
    value_offset = geometry.kv_heads * key_elements(geometry) + kv_head * value_elements(geometry);
    page_size = geometry.page_size;
    head_width = geometry.head_width;
    key_run = std::min<int64_t>(page_size, kPanelColumns);
  }

  // The panel that holds the key in this slot of a page: E rows of key_run columns.
  uint16_t* key_panel(int32_t page, int64_t slot) const {
    return layer + page * page_elements + key_offset + slot / key_run * head_width * key_run;
  }
  // Columns [column, column + 32) of the value in this slot of a page; the next slot's follow.
  uint16_t* value_panel(int32_t page, int64_t slot, int64_t column) const {
    return layer + page * page_elements + value_offset + column * page_size + slot * kPanelColumns;
  }
};

}  // namespace exact::cpu
