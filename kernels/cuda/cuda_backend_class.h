// cuda_backend_class.h owns the class behind cuda_backend.h: one stream, on which operations are
// launched in order, and what they need besides their tensors.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/detailed_rows.h"
#include "kernels/cuda/device_copies.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/recorder.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/cuda/step_tables.h"

namespace exact::cuda {

class CudaBackend final : public Backend {
 public:
  static Result<std::unique_ptr<CudaBackend>> create(const CudaOptions& options);
  ~CudaBackend() override;

  std::string_view name() const override { return "cuda-sm90"; }
  int threads() const override { return 1; }

  Result<Buffer> allocate(size_t bytes) override;
  void upload(const TensorView& device, std::span<const std::byte> host) override;
  void download(std::span<std::byte> host, const TensorView& device) override;
  Status copy_buffer(const Buffer& from, Buffer& to) override;
  Result<KvCache> allocate_kv(const KvGeometry& geometry) override;
  void copy_pages(KvCache& cache, std::span<const int32_t> from,
                  std::span<const int32_t> to) override;
  size_t page_bytes(const KvGeometry& geometry) const override;
  void save_pages(const KvCache& cache, std::span<const int32_t> pages,
                  std::span<std::byte> host) override;
  void load_pages(KvCache& cache, std::span<const int32_t> pages,
                  std::span<const std::byte> host) override;
  Status reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) override;
  void pack_linear(const TensorView& host_weight, int64_t first_row, LinearWeight& out) override;
  Status unpack_linear(const LinearWeight& weight, int64_t first_row,
                       const TensorView& host_weight) override;
  std::byte* rows_in_place(LinearWeight& weight, int64_t first_row) const override;
  Status start_copies(std::span<const DeviceCopy> copies) override {
    return copies_.start(copies, stream_);
  }
  Result<bool> copies_done() override { return copies_.done(); }
  Status finish_copies() override { return copies_.wait(); }
  std::string device_uuid() const override { return uuid_; }

  Status supports_linear(int64_t out_features, int64_t in_features) const override;
  Status supports_attention(int32_t query_heads, int32_t kv_heads,
                            int32_t head_width) const override;
  Status supports_vocabulary(int64_t vocabulary) const override;

  int64_t begin_step(const StepRows& step) override;
  int64_t padded_rows(int64_t rows) const override;
  void run_recorded(std::span<const uint64_t> key,
                    const std::function<void()>& operations) override;

  void embed(const TensorView& table, const TensorView& out) override;
  void rms_norm(const TensorView& x, const TensorView& weight, float epsilon, NormForm form,
                const TensorView& out) override;
  void add_rms_norm(const TensorView& x, const TensorView& y, const TensorView& weight,
                    float epsilon, NormForm form, const TensorView& out) override;
  void linear(const TensorView& x, const LinearWeight& weight, const TensorView* bias,
              const TensorView& out) override;
  void rope(const TensorView& x, const TensorView& cos_sin, const TensorView* head_norm,
            float epsilon, NormForm form) override;
  void store_kv(const TensorView& keys, const TensorView& values, int32_t layer,
                KvCache& cache) override;
  void rope_store_kv(const TensorView& query, const TensorView& keys, const TensorView& values,
                     const RopeParameters& rope_parameters, int32_t layer, KvCache& cache) override;
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

  Status finish() override;

 private:
  CudaBackend(const CudaOptions& options, const cudaDeviceProp& properties)
      : options_(options),
        multiprocessors_(properties.multiProcessorCount),
        uuid_(uuid_text(properties.uuid)),
        copies_(properties.multiProcessorCount) {}
  // Keeps the first failure for finish().
  void note(Status status) {
    if (failure_.is_ok() && !status.is_ok()) failure_ = std::move(status);
  }
  Status multiply(const MatmulInputs& inputs);
  Status reserve_attention_scratch(int32_t query_heads);
  Status sample_plain(const TensorView& logits, std::span<const SampleRow> rows,
                      void* device_outcomes);
  Status sample_apart(const TensorView& logits, std::span<const SampleRow> rows,
                      std::span<SampleOutcome> outcomes);

  CudaOptions options_;
  int multiprocessors_;
  std::string uuid_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<LtMatmul> lt_;
  StepTables step_;
  StepRows host_step_;  // valid until finish()
  TransferArena arena_;
  Recorder recorder_;
  uint64_t tables_generation_ = 0;  // of the records
  Buffer attention_scratch_;
  DetailedRows detailed_rows_;
  DeviceCopies copies_;
  Status failure_;  // the first since the last finish()
};

}  // namespace exact::cuda
