// idle_backend.h owns a backend that computes nothing, so that what is left of a step is the
// engine's own work; it notes when a step reaches it and when it leaves.
#pragma once

#include <chrono>
#include <cstdlib>

#include "kernels/backend.h"

namespace exact::bench {

class IdleBackend : public Backend {
 public:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begun, finished;  // of the last step: begin_step, and the end of finish

  std::string_view name() const override { return "idle"; }
  int threads() const override { return 1; }
  Result<Buffer> allocate(size_t bytes) override {
    return Buffer(std::calloc(bytes + 1, 1), bytes, [](void* data) { std::free(data); });
  }
  void upload(const TensorView&, std::span<const std::byte>) override {}
  void download(std::span<std::byte>, const TensorView&) override {}
  Result<KvCache> allocate_kv(const KvGeometry& geometry) override {
    KvCache cache;
    cache.geometry = geometry;
    EXACT_ASSIGN(cache.storage, allocate(1));
    return cache;
  }
  void copy_pages(KvCache&, std::span<const int32_t>, std::span<const int32_t>) override {}
  size_t page_bytes(const KvGeometry&) const override { return 1; }
  void save_pages(const KvCache&, std::span<const int32_t>, std::span<std::byte>) override {}
  void load_pages(KvCache&, std::span<const int32_t>, std::span<const std::byte>) override {}
  Status reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) override {
    EXACT_ASSIGN(out.storage, allocate(1));
    out.out_features = out_features;
    out.in_features = in_features;
    return {};
  }
  void pack_linear(const TensorView&, int64_t, LinearWeight&) override {}
  Status supports_linear(int64_t, int64_t) const override { return {}; }
  Status supports_attention(int32_t, int32_t, int32_t) const override { return {}; }
  Status supports_vocabulary(int64_t) const override { return {}; }
  int64_t begin_step(const StepRows& step) override {
    begun = Clock::now();
    return static_cast<int64_t>(step.ids.size());
  }
  void run_recorded(std::span<const uint64_t>, const std::function<void()>&) override {}
  void embed(const TensorView&, const TensorView&) override {}
  void rms_norm(const TensorView&, const TensorView&, float, NormForm, const TensorView&) override {
  }
  void linear(const TensorView&, const LinearWeight&, const TensorView*,
              const TensorView&) override {}
  void rope(const TensorView&, const TensorView&, const TensorView*, float, NormForm) override {}
  void store_kv(const TensorView&, const TensorView&, int32_t, KvCache&) override {}
  void attention(const TensorView&, const KvCache&, int32_t, const TensorView&) override {}
  void silu_mul(const TensorView&, const TensorView&, const TensorView&) override {}
  void add(const TensorView&, const TensorView&) override {}
  void gather_rows(const TensorView&, std::span<const int64_t>, const TensorView&) override {}
  void target_logprobs(const TensorView&, std::span<const int32_t>, std::span<float>) override {}
  void sample(const TensorView&, std::span<const SampleRow> rows,
              std::span<SampleOutcome> outcomes) override {
    for (size_t i = 0; i < rows.size(); i++) outcomes[i].token = rows[i].position % 8;
  }
  Status finish() override {
    finished = Clock::now();
    return {};
  }
};

}  // namespace exact::bench
