#include "kernels/cpu/kv_pages.h"

#include <cstring>

#include "kernels/base/check.h"
#include "kernels/cpu/kv_layout.h"

namespace exact::cpu {
namespace {

// The part of one layer.
size_t part_bytes(const KvCache& cache) {
  return static_cast<size_t>(HeadPages(cache, 0, 0).page_elements) * sizeof(uint16_t);
}

std::byte* part_of(const KvCache& cache, int32_t layer, int32_t page) {
  EXACT_CHECK(page >= 0 && page < cache.geometry.pages, "a page outside the cache");
  const HeadPages pages(cache, layer, 0);
  return reinterpret_cast<std::byte*>(pages.layer + page * pages.page_elements);
}

}  // namespace

void copy_pages(KvCache& cache, std::span<const int32_t> from, std::span<const int32_t> to) {
  EXACT_CHECK(from.size() == to.size(), "a page to copy, and where to");
  for (size_t i = 0; i < from.size(); i++) {
    for (int32_t layer = 0; layer < cache.geometry.layers; layer++) {
      std::memcpy(part_of(cache, layer, to[i]), part_of(cache, layer, from[i]), part_bytes(cache));
    }
  }
}

void save_pages(const KvCache& cache, std::span<const int32_t> pages, std::span<std::byte> host) {
  const size_t bytes = part_bytes(cache), layers = static_cast<size_t>(cache.geometry.layers);
  EXACT_CHECK(host.size() == pages.size() * layers * bytes, "host memory of the pages' size");
  std::byte* to = host.data();
  for (const int32_t page : pages) {
    for (int32_t layer = 0; layer < cache.geometry.layers; layer++, to += bytes) {
      std::memcpy(to, part_of(cache, layer, page), bytes);
    }
  }
}

void load_pages(KvCache& cache, std::span<const int32_t> pages, std::span<const std::byte> host) {
  const size_t bytes = part_bytes(cache), layers = static_cast<size_t>(cache.geometry.layers);
  EXACT_CHECK(host.size() == pages.size() * layers * bytes, "host memory of the pages' size");
  const std::byte* from = host.data();
  for (const int32_t page : pages) {
    for (int32_t layer = 0; layer < cache.geometry.layers; layer++, from += bytes) {
      std::memcpy(part_of(cache, layer, page), from, bytes);
    }
  }
}

}  // namespace exact::cpu
