// kv_layout.h owns the addresses inside the paged cache of the CUDA backend.
//
//   cache   [layer][page][keys, values][kv head][column block][slot][64]          bf16
//
// A column block is 64 columns of the head, the last one padded with zeros (head width 80: 2
// blocks), so a run of slots of one column block is contiguous: rows of 128 bytes. Within such a
// row the 16-byte chunk c lies at c ^ (slot % 8): what the tensor cores' 128-byte swizzle wants, so
// that a plain bulk copy of a run of slots is a tile ready for wgmma or ldmatrix. Runs start at a
// multiple of 16 slots, hence of 2048 bytes.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/base/bf16.h"

namespace exact::cuda {

inline constexpr int kColumnBlock = 64;

EXACT_HD int column_blocks(int head_width) {
  return (head_width + kColumnBlock - 1) / kColumnBlock;
}

// One layer of a cache; passed to kernels by value.
struct LayerPages {
  uint16_t* layer = nullptr;
  int32_t page_size = 0;   // P: 16, 32, 64 or 128
  int32_t kv_heads = 0;    // G
  int32_t head_width = 0;  // E
  int32_t blocks = 0;      // column_blocks(E)

  EXACT_HD_MEMBER int64_t head_elements() const {
    return int64_t{blocks} * page_size * kColumnBlock;
  }
  EXACT_HD_MEMBER int64_t page_elements() const { return 2 * kv_heads * head_elements(); }
  // The first slot of a page's column block: page_size rows of 64 elements, swizzled.
  EXACT_HD_MEMBER uint16_t* keys(int32_t page, int32_t head, int32_t block) const {
    return layer + page * page_elements() + head * head_elements() +
           int64_t{block} * page_size * kColumnBlock;
  }
  EXACT_HD_MEMBER uint16_t* values(int32_t page, int32_t head, int32_t block) const {
    return keys(page, head, block) + kv_heads * head_elements();
  }
};

// Element (slot, column) of a column block, column in [0, 64).
EXACT_HD int64_t swizzled(int32_t slot, int32_t column) {
  return int64_t{slot} * kColumnBlock + ((column / 8 ^ (slot & 7)) * 8 + column % 8);
}

inline int64_t layer_elements(const KvGeometry& geometry) {
  return int64_t{geometry.pages} * 2 * geometry.kv_heads * column_blocks(geometry.head_width) *
         geometry.page_size * kColumnBlock;
}

inline LayerPages layer_pages(const KvCache& cache, int32_t layer) {
  const KvGeometry& geometry = cache.geometry;
  return {static_cast<uint16_t*>(cache.storage.data()) + layer * layer_elements(geometry),
          geometry.page_size, geometry.kv_heads, geometry.head_width,
          column_blocks(geometry.head_width)};
}

}  // namespace exact::cuda
