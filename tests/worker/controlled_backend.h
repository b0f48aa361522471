// failing_backend.h owns a backend that breaks when a test says so, as a GPU that falls off its
// bus.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "kernels/backend.h"

namespace exact::worker_tests {

// Hands everything to another backend.
class ControlledBackend : public Backend {
 public:
  explicit ControlledBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}
  ~ControlledBackend() override { release(); }

  void break_now() { broken_ = true; }                              // from now on every step fails
  void slow_down(std::chrono::milliseconds step) { step_ = step; }  // each takes this much longer

  // The next step stands still until release().
  void hold() {
    const std::lock_guard lock(mutex_);
    held_ = true;
  }
  void wait_until_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return standing_; });
  }
  void release() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }

  std::string_view name() const override { return inner_->name(); }
  int threads() const override { return inner_->threads(); }
  Result<Buffer> allocate(size_t bytes) override { return inner_->allocate(bytes); }
  void upload(const TensorView& device, std::span<const std::byte> host) override {
    inner_->upload(device, host);
  }
  void download(std::span<std::byte> host, const TensorView& device) override {
    inner_->download(host, device);
  }
  Result<KvCache> allocate_kv(const KvGeometry& geometry) override {
    return inner_->allocate_kv(geometry);
  }
  void copy_pages(KvCache& cache, std::span<const int32_t> from,
                  std::span<const int32_t> to) override {
    inner_->copy_pages(cache, from, to);
  }
  size_t page_bytes(const KvGeometry& geometry) const override {
    return inner_->page_bytes(geometry);
  }
  void save_pages(const KvCache& cache, std::span<const int32_t> pages,
                  std::span<std::byte> host) override {
    inner_->save_pages(cache, pages, host);
  }
  void load_pages(KvCache& cache, std::span<const int32_t> pages,
                  std::span<const std::byte> host) override {
    inner_->load_pages(cache, pages, host);
  }
  Status reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) override {
    return inner_->reserve_linear(out_features, in_features, out);
  }
  void pack_linear(const TensorView& host_weight, int64_t first_row, LinearWeight& out) override {
    inner_->pack_linear(host_weight, first_row, out);
  }
  Status unpack_linear(const LinearWeight& weight, int64_t first_row,
                       const TensorView& host_weight) override {
    return inner_->unpack_linear(weight, first_row, host_weight);
  }
  Status supports_linear(int64_t out_features, int64_t in_features) const override {
    return inner_->supports_linear(out_features, in_features);
  }
  Status supports_attention(int32_t query_heads, int32_t kv_heads,
                            int32_t head_width) const override {
    return inner_->supports_attention(query_heads, kv_heads, head_width);
  }
  Status supports_vocabulary(int64_t vocabulary) const override {
    return inner_->supports_vocabulary(vocabulary);
  }
  int64_t begin_step(const StepRows& step) override { return inner_->begin_step(step); }
  void embed(const TensorView& table, const TensorView& out) override { inner_->embed(table, out); }
  void rms_norm(const TensorView& x, const TensorView& weight, float epsilon, NormForm form,
                const TensorView& out) override {
    inner_->rms_norm(x, weight, epsilon, form, out);
  }
  void linear(const TensorView& x, const LinearWeight& weight, const TensorView* bias,
              const TensorView& out) override {
    inner_->linear(x, weight, bias, out);
  }
  void rope(const TensorView& x, const TensorView& cos_sin, const TensorView* head_norm,
            float epsilon, NormForm form) override {
    inner_->rope(x, cos_sin, head_norm, epsilon, form);
  }
  void store_kv(const TensorView& keys, const TensorView& values, int32_t layer,
                KvCache& cache) override {
    inner_->store_kv(keys, values, layer, cache);
  }
  void attention(const TensorView& query, const KvCache& cache, int32_t layer,
                 const TensorView& out) override {
    inner_->attention(query, cache, layer, out);
  }
  void silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out) override {
    inner_->silu_mul(gate, up, out);
  }
  void add(const TensorView& x, const TensorView& y) override { inner_->add(x, y); }
  void gather_rows(const TensorView& x, std::span<const int64_t> rows,
                   const TensorView& out) override {
    inner_->gather_rows(x, rows, out);
  }
  void target_logprobs(const TensorView& logits, std::span<const int32_t> targets,
                       std::span<float> out) override {
    inner_->target_logprobs(logits, targets, out);
  }
  void sample(const TensorView& logits, std::span<const SampleRow> rows,
              std::span<SampleOutcome> outcomes) override {
    inner_->sample(logits, rows, outcomes);
  }
  Status finish() override {
    std::this_thread::sleep_for(step_.load());
    stand_while_held();
    if (broken_) return Status(Code::device, "the device is gone");
    return inner_->finish();
  }

 private:
  void stand_while_held() {
    std::unique_lock lock(mutex_);
    if (!held_) return;
    standing_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_; });
    standing_ = false;
  }

  std::unique_ptr<Backend> inner_;
  std::atomic<bool> broken_{false};
  std::atomic<std::chrono::milliseconds> step_{std::chrono::milliseconds(0)};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  bool standing_ = false;
};

}  // namespace exact::worker_tests
