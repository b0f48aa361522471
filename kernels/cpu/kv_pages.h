// kv_pages.h owns the moving of whole pages: within the cache, and to host memory and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/backend.h"

namespace exact::cpu {

// As Backend says of the operations of these names. A page on the host is its part of layer 0, then
// of layer 1, ...
void copy_pages(KvCache& cache, std::span<const int32_t> from, std::span<const int32_t> to);
void save_pages(const KvCache& cache, std::span<const int32_t> pages, std::span<std::byte> host);
void load_pages(KvCache& cache, std::span<const int32_t> pages, std::span<const std::byte> host);

}  // namespace exact::cpu
