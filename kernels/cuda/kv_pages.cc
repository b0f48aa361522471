// kv_pages.cc owns the moving of whole pages: within the cache, and to host memory and back. A page
// on the host is its part of layer 0, then of layer 1, ...; the copy engine gathers the layers.
#include "kernels/base/check.h"
#include "kernels/cuda/cuda_backend_class.h"
#include "kernels/cuda/kv_layout.h"

namespace exact::cuda {
namespace {

size_t layer_bytes(const KvGeometry& geometry) {
  return static_cast<size_t>(layer_elements(geometry)) * sizeof(uint16_t);
}

// The part of one layer.
size_t part_bytes(const KvGeometry& geometry) {
  return layer_bytes(geometry) / static_cast<size_t>(geometry.pages);
}

std::byte* first_part(const KvCache& cache, int32_t page) {
  EXACT_CHECK(page >= 0 && page < cache.geometry.pages, "a page outside the cache");
  return static_cast<std::byte*>(cache.storage.data()) +
         static_cast<size_t>(page) * part_bytes(cache.geometry);
}

}  // namespace

size_t CudaBackend::page_bytes(const KvGeometry& geometry) const {
  return static_cast<size_t>(geometry.layers) * part_bytes(geometry);
}

void CudaBackend::copy_pages(KvCache& cache, std::span<const int32_t> from,
                             std::span<const int32_t> to) {
  EXACT_CHECK(from.size() == to.size(), "a page to copy, and where to");
  const KvGeometry& geometry = cache.geometry;
  const size_t pitch = layer_bytes(geometry), layers = static_cast<size_t>(geometry.layers);
  for (size_t i = 0; i < from.size(); i++) {
    note(cuda_status(
        cudaMemcpy2DAsync(first_part(cache, to[i]), pitch, first_part(cache, from[i]), pitch,
                          part_bytes(geometry), layers, cudaMemcpyDeviceToDevice, stream_),
        "a copy of a page"));
  }
}

void CudaBackend::save_pages(const KvCache& cache, std::span<const int32_t> pages,
                             std::span<std::byte> host) {
  const KvGeometry& geometry = cache.geometry;
  const size_t bytes = page_bytes(geometry), part = part_bytes(geometry);
  EXACT_CHECK(host.size() == pages.size() * bytes, "host memory of the pages' size");
  for (size_t i = 0; i < pages.size(); i++) {
    note(cuda_status(
        cudaMemcpy2DAsync(host.data() + i * bytes, part, first_part(cache, pages[i]),
                          layer_bytes(geometry), part, static_cast<size_t>(geometry.layers),
                          cudaMemcpyDeviceToHost, stream_),
        "a page to host memory"));
  }
}

void CudaBackend::load_pages(KvCache& cache, std::span<const int32_t> pages,
                             std::span<const std::byte> host) {
  const KvGeometry& geometry = cache.geometry;
  const size_t bytes = page_bytes(geometry), part = part_bytes(geometry);
  EXACT_CHECK(host.size() == pages.size() * bytes, "host memory of the pages' size");
  for (size_t i = 0; i < pages.size(); i++) {
    note(cuda_status(
        cudaMemcpy2DAsync(first_part(cache, pages[i]), layer_bytes(geometry),
                          host.data() + i * bytes, part, part, static_cast<size_t>(geometry.layers),
                          cudaMemcpyHostToDevice, stream_),
        "a page from host memory"));
  }
}

}  // namespace exact::cuda
