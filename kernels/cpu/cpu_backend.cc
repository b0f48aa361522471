// cpu_backend.cc owns the making of a CPU backend, and of its caches and packed weights.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend_class.h"
#include "kernels/cpu/linear.h"

namespace exact {
namespace cpu {

Result<KvCache> CpuBackend::allocate_kv(const KvGeometry& geometry) {
  const int32_t page = geometry.page_size;
  if (page != 16 && page != 32 && page != 64 && page != 128) {
    return Status(Code::invalid,
                  "page_size is " + std::to_string(page) + ": say 16, 32, 64 or 128");
  }
  EXACT_CHECK(geometry.layers > 0 && geometry.pages > 0 && geometry.kv_heads > 0,
              "a cache has layers, pages and heads");
  EXACT_RETURN_IF_ERROR(contract::check_head_width(geometry.head_width));
  KvCache cache;
  cache.geometry = geometry;
  EXACT_ASSIGN(cache.storage, allocate(kv_bytes(geometry)));
  return cache;
}

Status CpuBackend::reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) {
  EXACT_CHECK(out_features > 0 && in_features > 0, "a weight has rows and columns");
  const size_t bytes = packed_bytes(out_features, in_features);
  if (out.storage.bytes() < bytes) {
    out.storage.reset();
    EXACT_ASSIGN(out.storage, allocate(bytes));
  }
  out.out_features = out_features;
  out.in_features = in_features;
  return {};
}

void CpuBackend::pack_linear(const TensorView& host_weight, int64_t first_row, LinearWeight& out) {
  check_matrix(host_weight, host_weight.rows, out.in_features);
  EXACT_CHECK(first_row >= 0 && first_row + host_weight.rows <= out.out_features,
              "rows outside the weight");
  pack_weight(context_, host_weight, first_row, out);
}

Status CpuBackend::unpack_linear(const LinearWeight& weight, int64_t first_row,
                                 const TensorView& host_weight) {
  check_matrix(host_weight, host_weight.rows, weight.in_features);
  EXACT_CHECK(first_row >= 0 && first_row + host_weight.rows <= weight.out_features,
              "rows outside the weight");
  unpack_weight(context_, weight, first_row, host_weight);
  return {};
}

}  // namespace cpu

namespace {
constexpr int kMaxThreads = 1024;
}  // namespace

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options) {
  if (!cpu_isa_available(options.isa)) {
    return Status(Code::unsupported, "this machine lacks " +
                                         std::string(cpu_isa_name(options.isa)) +
                                         ": say auto for the best that it has");
  }
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return Status(Code::invalid, "threads is " + std::to_string(options.threads) + ": say 1 to " +
                                     std::to_string(kMaxThreads) + ", or 0 for one a core");
  }
  const int threads = options.threads == 0 ? cpu::allowed_core_count() : options.threads;
  return std::unique_ptr<Backend>(std::make_unique<cpu::CpuBackend>(
      options.isa, std::min(threads, kMaxThreads), options.profile));
}

}  // namespace exact
