// memory_backend.h owns a backend that is memory alone, for tests of weights. It does what it is
// told as late as it may: uploads and packing happen in finish(), so bytes that were taken back too
// early show. It counts allocations and fails where a test asks it to.
#pragma once

#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace exact {

class MemoryBackend : public Backend {
 public:
  int allocations = 0;
  int allocations_left = INT32_MAX;  // then: exhausted
  Status next_finish;                // given once, by the next finish()

  std::string_view name() const override { return "memory"; }
  int threads() const override { return 1; }

  Result<Buffer> allocate(size_t bytes) override {
    if (allocations_left == 0) return Status(Code::exhausted, "no memory left");
    allocations_left--;
    allocations++;
    return Buffer(std::calloc(bytes, 1), bytes, [](void* data) { std::free(data); });
  }
  void upload(const TensorView& device, std::span<const std::byte> host) override {
    EXACT_CHECK(static_cast<size_t>(device.rows * device.columns) * 2 == host.size(), "shapes");
    later_.push_back([=] { std::memcpy(device.data, host.data(), host.size()); });
  }
  Status reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) override {
    const size_t bytes = static_cast<size_t>(out_features * in_features) * 2;
    if (out.storage.bytes() < bytes) {
      EXACT_ASSIGN(out.storage, allocate(bytes));
    }
    out.out_features = out_features;
    out.in_features = in_features;
    return {};
  }
  void pack_linear(const TensorView& host, int64_t first_row, LinearWeight& out) override {
    EXACT_CHECK(host.columns == out.in_features && first_row + host.rows <= out.out_features,
                "rows outside the weight");
    const size_t bytes = static_cast<size_t>(host.rows * host.columns) * 2;
    std::byte* to = static_cast<std::byte*>(out.storage.data()) + first_row * host.columns * 2;
    later_.push_back([host, bytes, to] { std::memcpy(to, host.data, bytes); });
  }
  Status unpack_linear(const LinearWeight& weight, int64_t first_row,
                       const TensorView& host) override {
    const auto* from = static_cast<const std::byte*>(weight.storage.data());
    const auto offset = static_cast<size_t>(first_row * host.columns * 2);
    const auto bytes = static_cast<size_t>(host.rows * host.columns) * 2;
    later_.push_back([=] { std::memcpy(host.data, from + offset, bytes); });
    return {};
  }
  void download(std::span<std::byte> host, const TensorView& device) override {
    later_.push_back([=] { std::memcpy(host.data(), device.data, host.size()); });
  }
  Status finish() override {
    for (const auto& action : later_) action();
    later_.clear();
    return std::exchange(next_finish, Status());
  }

  // A model's weights never reach these.
  Result<KvCache> allocate_kv(const KvGeometry&) override { refuse(); }
  void copy_pages(KvCache&, std::span<const int32_t>, std::span<const int32_t>) override {
    refuse();
  }
  size_t page_bytes(const KvGeometry&) const override { refuse(); }
  void save_pages(const KvCache&, std::span<const int32_t>, std::span<std::byte>) override {
    refuse();
  }
  void load_pages(KvCache&, std::span<const int32_t>, std::span<const std::byte>) override {
    refuse();
  }
  Status supports_linear(int64_t, int64_t) const override { refuse(); }
  Status supports_attention(int32_t, int32_t, int32_t) const override { refuse(); }
  Status supports_vocabulary(int64_t) const override { refuse(); }
  int64_t begin_step(const StepRows&) override { refuse(); }
  void embed(const TensorView&, const TensorView&) override { refuse(); }
  void rms_norm(const TensorView&, const TensorView&, float, NormForm, const TensorView&) override {
    refuse();
  }
  void linear(const TensorView&, const LinearWeight&, const TensorView*,
              const TensorView&) override {
    refuse();
  }
  void rope(const TensorView&, const TensorView&, const TensorView*, float, NormForm) override {
    refuse();
  }
  void store_kv(const TensorView&, const TensorView&, int32_t, KvCache&) override { refuse(); }
  void attention(const TensorView&, const KvCache&, int32_t, const TensorView&) override {
    refuse();
  }
  void silu_mul(const TensorView&, const TensorView&, const TensorView&) override { refuse(); }
  void add(const TensorView&, const TensorView&) override { refuse(); }
  void gather_rows(const TensorView&, std::span<const int64_t>, const TensorView&) override {
    refuse();
  }
  void target_logprobs(const TensorView&, std::span<const int32_t>, std::span<float>) override {
    refuse();
  }
  void sample(const TensorView&, std::span<const SampleRow>, std::span<SampleOutcome>) override {
    refuse();
  }

 private:
  [[noreturn]] static void refuse() {
    check_failed(__FILE__, __LINE__, "refuse", "this backend holds weights, it computes nothing");
  }

  std::vector<std::function<void()>> later_;
};

}  // namespace exact
