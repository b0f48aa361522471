// kv_layout.h owns the addresses inside the paged cache (attention.h says what they mean).
#pragma once

#include "kernels/backend.h"

namespace exact::cpu {

// One kv head of one layer.
struct HeadPages {
  uint16_t* layer = nullptr;
  int64_t page_elements = 0;  // of all heads, keys and values
  int64_t key_offset = 0;
  int64_t value_offset = 0;
  int64_t page_size = 0;
  int64_t head_width = 0;

  HeadPages(const KvCache& cache, int32_t layer_index, int32_t kv_head) {
    const KvGeometry& geometry = cache.geometry;
    const int64_t head_elements = int64_t{geometry.head_width} * geometry.page_size;
    page_elements = 2 * geometry.kv_heads * head_elements;
    layer = static_cast<uint16_t*>(cache.storage.data()) +
            int64_t{layer_index} * geometry.pages * page_elements;
    key_offset = kv_head * head_elements;
    value_offset = (geometry.kv_heads + kv_head) * head_elements;
    page_size = geometry.page_size;
    head_width = geometry.head_width;
  }

  uint16_t* keys(int32_t page) const { return layer + page * page_elements + key_offset; }
  uint16_t* values(int32_t page) const { return layer + page * page_elements + value_offset; }
};

}  // namespace exact::cpu
