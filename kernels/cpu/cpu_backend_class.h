// cpu_backend_class.h owns the class behind cpu_backend.h: the operations of a Backend, done when
// they return, and the timers of a profile.
#pragma once

#include <chrono>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/contract/shape.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/context.h"
#include "kernels/cpu/kv_pages.h"
#include "kernels/cpu/memory.h"

namespace exact::cpu {

// A bug if it is another shape, or not bf16.
inline void check_matrix(const TensorView& view, int64_t rows, int64_t columns) {
  EXACT_CHECK(view.dtype == DType::bf16, "the CPU backend's tensors are bf16");
  EXACT_CHECK(view.rows == rows && view.columns == columns, "a tensor of the wrong shape");
  EXACT_CHECK(rows == 0 || (view.data != nullptr && view.row_stride >= columns),
              "a tensor without memory, or with rows that overlap");
}

inline const uint16_t* vector_data(const TensorView& view, int64_t columns) {
  check_matrix(view, 1, columns);
  return view.row<const uint16_t>(0);
}

// Adds the time of a scope to one entry of a profile, if there is one.
class OperationTimer {
 public:
  using Clock = std::chrono::steady_clock;

  OperationTimer(CpuProfile* profile, CpuContext& context, double CpuProfile::*entry)
      : profile_(profile), context_(context), entry_(entry) {
    if (profile_ != nullptr) start_ = Clock::now();
  }
  ~OperationTimer() {
    if (profile_ == nullptr) return;
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    profile_->*entry_ += seconds;
    profile_->total += seconds;
    profile_->chain += context_.take_chain_time();
  }
  OperationTimer(const OperationTimer&) = delete;
  OperationTimer& operator=(const OperationTimer&) = delete;

 private:
  CpuProfile* profile_;
  CpuContext& context_;
  double CpuProfile::*entry_;
  Clock::time_point start_;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(CpuIsa isa, int threads, CpuProfile* profile)
      : name_("cpu-" + std::string(cpu_isa_name(isa))),
        profile_(profile),
        context_(isa, threads, profile != nullptr) {}

  std::string_view name() const override { return name_; }
  int threads() const override { return context_.pool.thread_count(); }

  Result<Buffer> allocate(size_t bytes) override { return allocate_zeroed(bytes); }

  void upload(const TensorView& device, std::span<const std::byte> host) override {
    EXACT_CHECK(device.rows <= 1 || device.row_stride == device.columns, "an upload is contiguous");
    EXACT_CHECK(host.size() == bytes_of(device), "an upload of the wrong size");
    if (!host.empty()) std::memcpy(device.data, host.data(), host.size());
  }
  void download(std::span<std::byte> host, const TensorView& device) override {
    EXACT_CHECK(device.rows <= 1 || device.row_stride == device.columns,
                "a download is contiguous");
    EXACT_CHECK(host.size() == bytes_of(device), "a download of the wrong size");
    if (!host.empty()) std::memcpy(host.data(), device.data, host.size());
  }

  Status copy_buffer(const Buffer& from, Buffer& to) override {
    EXACT_CHECK(from.bytes() == to.bytes(), "a copy between buffers of different sizes");
    if (from.bytes() > 0) std::memcpy(to.data(), from.data(), from.bytes());
    return {};
  }

  Result<KvCache> allocate_kv(const KvGeometry& geometry) override;
  void copy_pages(KvCache& cache, std::span<const int32_t> from,
                  std::span<const int32_t> to) override {
    cpu::copy_pages(cache, from, to);
  }
  size_t page_bytes(const KvGeometry& geometry) const override {
    return kv_bytes(geometry) / static_cast<size_t>(geometry.pages);
  }
  void save_pages(const KvCache& cache, std::span<const int32_t> pages,
                  std::span<std::byte> host) override {
    cpu::save_pages(cache, pages, host);
  }
  void load_pages(KvCache& cache, std::span<const int32_t> pages,
                  std::span<const std::byte> host) override {
    cpu::load_pages(cache, pages, host);
  }
  Status reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) override;
  void pack_linear(const TensorView& host_weight, int64_t first_row, LinearWeight& out) override;
  Status unpack_linear(const LinearWeight& weight, int64_t first_row,
                       const TensorView& host_weight) override;

  Status supports_linear(int64_t out_features, int64_t in_features) const override {
    return contract::check_linear_shape(out_features, in_features);
  }
  Status supports_attention(int32_t query_heads, int32_t kv_heads,
                            int32_t head_width) const override {
    return contract::check_attention_shape(query_heads, kv_heads, head_width);
  }
  Status supports_vocabulary(int64_t vocabulary) const override {
    return contract::check_vocabulary(vocabulary);
  }

  int64_t begin_step(const StepRows& step) override;
  void embed(const TensorView& table, const TensorView& out) override;
  void rms_norm(const TensorView& x, const TensorView& weight, float epsilon, NormForm form,
                const TensorView& out) override;
  void linear(const TensorView& x, const LinearWeight& weight, const TensorView* bias,
              const TensorView& out) override;
  void rope(const TensorView& x, const TensorView& cos_sin, const TensorView* head_norm,
            float epsilon, NormForm form) override;
  void store_kv(const TensorView& keys, const TensorView& values, int32_t layer,
                KvCache& cache) override;
  void attention(const TensorView& query, const KvCache& cache, int32_t layer,
                 const TensorView& out) override;
  void silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out) override;
  void add(const TensorView& x, const TensorView& y) override;
  void gather_rows(const TensorView& x, std::span<const int64_t> rows,
                   const TensorView& out) override;
  void target_logprobs(const TensorView& logits, std::span<const int32_t> targets,
                       std::span<float> out) override;
  void sample(const TensorView& logits, std::span<const SampleRow> rows,
              std::span<SampleOutcome> outcomes) override;

  Status finish() override { return std::exchange(failure_, Status()); }

 private:
  static size_t bytes_of(const TensorView& view) {
    return static_cast<size_t>(view.rows * view.columns) * dtype_bytes(view.dtype);
  }
  void note(Status status) {
    if (failure_.is_ok() && !status.is_ok()) failure_ = std::move(status);
  }
  void check_step(int64_t row_count, int32_t layer, const KvCache& cache) const;

  OperationTimer time(double CpuProfile::*entry) { return {profile_, context_, entry}; }

  std::string name_;
  CpuProfile* profile_;
  CpuContext context_;
  StepRows step_;
  std::vector<AttentionTask> attention_tasks_;
  Status failure_;  // the first since the last finish()
};

}  // namespace exact::cpu
