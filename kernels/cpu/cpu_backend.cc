// cpu_backend.cc owns the CPU's Backend: it checks what callers promise, and hands the work to the
// files of its operations. Operations are done when they return.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/contract/shape.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/context.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/logits.h"
#include "kernels/cpu/memory.h"

namespace exact {
namespace {

using cpu::CpuContext;

constexpr int kMaxThreads = 1024;

void check_matrix(const TensorView& view, int64_t rows, int64_t columns) {
  EXACT_CHECK(view.dtype == DType::bf16, "the CPU backend's tensors are bf16");
  EXACT_CHECK(view.rows == rows && view.columns == columns, "a tensor of the wrong shape");
  EXACT_CHECK(rows == 0 || (view.data != nullptr && view.row_stride >= columns),
              "a tensor without memory, or with rows that overlap");
}

const uint16_t* vector_data(const TensorView& view, int64_t columns) {
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

  Result<Buffer> allocate(size_t bytes) override { return cpu::allocate_zeroed(bytes); }

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

  Result<KvCache> allocate_kv(const KvGeometry& geometry) override;
  Status pack_linear(const TensorView& host_weight, LinearWeight& out) override;

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

  void embed(std::span<const int32_t> ids, const TensorView& table, const TensorView& out) override;
  void rms_norm(const TensorView& x, const TensorView& weight, float epsilon, NormForm form,
                const TensorView& out) override;
  void linear(const TensorView& x, const LinearWeight& weight, const TensorView* bias,
              const TensorView& out) override;
  void rope(const TensorView& x, std::span<const int32_t> positions, const TensorView& cos_sin,
            const TensorView* head_norm, float epsilon, NormForm form) override;
  void store_kv(const TensorView& keys, const TensorView& values,
                std::span<const SequenceChunk> chunks, int32_t layer, KvCache& cache) override;
  void attention(const TensorView& query, const KvCache& cache,
                 std::span<const SequenceChunk> chunks, int32_t layer,
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
  void check_chunks(std::span<const SequenceChunk> chunks, int64_t row_count, int32_t layer,
                    const KvCache& cache) const;

  OperationTimer time(double CpuProfile::*entry) { return {profile_, context_, entry}; }

  std::string name_;
  CpuProfile* profile_;
  CpuContext context_;
  std::vector<cpu::AttentionTask> attention_tasks_;
  Status failure_;  // the first since the last finish()
};

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
  EXACT_ASSIGN(cache.storage, allocate(cpu::kv_bytes(geometry)));
  return cache;
}

Status CpuBackend::pack_linear(const TensorView& host_weight, LinearWeight& out) {
  EXACT_CHECK(host_weight.rows > 0 && host_weight.columns > 0, "a weight has rows and columns");
  check_matrix(host_weight, host_weight.rows, host_weight.columns);
  const size_t bytes = cpu::packed_bytes(host_weight.rows, host_weight.columns);
  if (out.storage.bytes() < bytes) {
    out.storage.reset();
    EXACT_ASSIGN(out.storage, allocate(bytes));
  }
  out.out_features = host_weight.rows;
  out.in_features = host_weight.columns;
  cpu::pack_weight(context_, host_weight, static_cast<uint16_t*>(out.storage.data()));
  return {};
}

void CpuBackend::embed(std::span<const int32_t> ids, const TensorView& table,
                       const TensorView& out) {
  const auto timer = time(&CpuProfile::copies);
  check_matrix(table, table.rows, table.columns);
  check_matrix(out, static_cast<int64_t>(ids.size()), table.columns);
  for (size_t t = 0; t < ids.size(); t++) {
    EXACT_CHECK(ids[t] >= 0 && ids[t] < table.rows, "a token id outside the table");
    std::memcpy(out.row<uint16_t>(static_cast<int64_t>(t)), table.row<const uint16_t>(ids[t]),
                static_cast<size_t>(table.columns) * sizeof(uint16_t));
  }
}

void CpuBackend::gather_rows(const TensorView& x, std::span<const int64_t> rows,
                             const TensorView& out) {
  const auto timer = time(&CpuProfile::copies);
  check_matrix(x, x.rows, x.columns);
  check_matrix(out, static_cast<int64_t>(rows.size()), x.columns);
  for (size_t i = 0; i < rows.size(); i++) {
    EXACT_CHECK(rows[i] >= 0 && rows[i] < x.rows, "a row outside the tensor");
    std::memcpy(out.row<uint16_t>(static_cast<int64_t>(i)), x.row<const uint16_t>(rows[i]),
                static_cast<size_t>(x.columns) * sizeof(uint16_t));
  }
}

void CpuBackend::rms_norm(const TensorView& x, const TensorView& weight, float epsilon,
                          NormForm form, const TensorView& out) {
  const auto timer = time(&CpuProfile::norm_rope);
  check_matrix(x, x.rows, x.columns);
  check_matrix(out, x.rows, x.columns);
  EXACT_CHECK(contract::check_norm_width(x.columns).is_ok(), "a norm width of the contract");
  const uint16_t* w = vector_data(weight, x.columns);
  context_.pool.run(x.rows, [&](int64_t t, int) {
    context_.rows.rms_norm(x.row<const uint16_t>(t), w, x.columns, epsilon, form,
                           out.row<uint16_t>(t));
  });
}

void CpuBackend::linear(const TensorView& x, const LinearWeight& weight, const TensorView* bias,
                        const TensorView& out) {
  const auto timer = time(&CpuProfile::linear);
  check_matrix(x, x.rows, weight.in_features);
  check_matrix(out, x.rows, weight.out_features);
  EXACT_CHECK(weight.storage.bytes() >= cpu::packed_bytes(weight.out_features, weight.in_features),
              "a weight that was not packed");
  const uint16_t* b = bias == nullptr ? nullptr : vector_data(*bias, weight.out_features);
  note(cpu::linear(context_, x, weight, b, out));
}

void CpuBackend::rope(const TensorView& x, std::span<const int32_t> positions,
                      const TensorView& cos_sin, const TensorView* head_norm, float epsilon,
                      NormForm form) {
  const auto timer = time(&CpuProfile::norm_rope);
  const int64_t width = cos_sin.columns / 2;
  check_matrix(cos_sin, cos_sin.rows, 2 * width);
  check_matrix(x, static_cast<int64_t>(positions.size()), x.columns);
  EXACT_CHECK(contract::check_head_width(width).is_ok() && x.columns % width == 0,
              "rows of whole heads");
  const uint16_t* norm = head_norm == nullptr ? nullptr : vector_data(*head_norm, width);
  context_.pool.run(x.rows, [&](int64_t t, int) {
    const uint16_t* cosines = cos_sin.row<const uint16_t>(positions[static_cast<size_t>(t)]);
    uint16_t* row = x.row<uint16_t>(t);
    for (uint16_t* head = row; head < row + x.columns; head += width) {
      if (norm != nullptr) context_.rows.rms_norm(head, norm, width, epsilon, form, head);
      context_.rows.rotate_head(head, width, cosines, cosines + width);
    }
  });
}

void CpuBackend::check_chunks(std::span<const SequenceChunk> chunks, int64_t row_count,
                              int32_t layer, const KvCache& cache) const {
  const KvGeometry& geometry = cache.geometry;
  EXACT_CHECK(layer >= 0 && layer < geometry.layers, "a layer outside the cache");
  EXACT_CHECK(cache.storage.bytes() >= cpu::kv_bytes(geometry), "a cache without memory");
  for (const SequenceChunk& chunk : chunks) {
    EXACT_CHECK(chunk.first_row >= 0 && chunk.row_count > 0 && chunk.first_position >= 0 &&
                    chunk.first_row + chunk.row_count <= row_count,
                "a chunk outside the step");
    const int64_t positions = int64_t{chunk.first_position} + chunk.row_count;
    const int64_t pages = cpu::piece_count(positions, geometry.page_size);
    EXACT_CHECK(static_cast<int64_t>(chunk.pages.size()) >= pages, "a chunk without its pages");
    for (int64_t i = 0; i < pages; i++) {
      const int32_t page = chunk.pages[static_cast<size_t>(i)];
      EXACT_CHECK(page >= 0 && page < geometry.pages, "a page outside the cache");
    }
  }
}

void CpuBackend::store_kv(const TensorView& keys, const TensorView& values,
                          std::span<const SequenceChunk> chunks, int32_t layer, KvCache& cache) {
  const auto timer = time(&CpuProfile::copies);
  const int64_t width = int64_t{cache.geometry.kv_heads} * cache.geometry.head_width;
  check_matrix(keys, keys.rows, width);
  check_matrix(values, keys.rows, width);
  check_chunks(chunks, keys.rows, layer, cache);
  cpu::store_kv(context_, keys, values, chunks, layer, cache);
}

void CpuBackend::attention(const TensorView& query, const KvCache& cache,
                           std::span<const SequenceChunk> chunks, int32_t layer,
                           const TensorView& out) {
  const auto timer = time(&CpuProfile::attention);
  const int64_t group_width = int64_t{cache.geometry.kv_heads} * cache.geometry.head_width;
  check_matrix(query, query.rows, query.columns);
  check_matrix(out, query.rows, query.columns);
  EXACT_CHECK(query.columns > 0 && query.columns % group_width == 0,
              "query heads are a multiple of kv heads");
  check_chunks(chunks, query.rows, layer, cache);
  note(cpu::attention(context_, query, cache, chunks, layer, attention_tasks_, out));
}

void CpuBackend::silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out) {
  const auto timer = time(&CpuProfile::pointwise);
  check_matrix(gate, gate.rows, gate.columns);
  check_matrix(up, gate.rows, gate.columns);
  check_matrix(out, gate.rows, gate.columns);
  context_.pool.run(gate.rows, [&](int64_t t, int) {
    context_.rows.silu_mul(gate.row<const uint16_t>(t), up.row<const uint16_t>(t), gate.columns,
                           out.row<uint16_t>(t));
  });
}

void CpuBackend::add(const TensorView& x, const TensorView& y) {
  const auto timer = time(&CpuProfile::pointwise);
  check_matrix(x, x.rows, x.columns);
  check_matrix(y, x.rows, x.columns);
  context_.pool.run(x.rows, [&](int64_t t, int) {
    context_.rows.add(x.row<uint16_t>(t), y.row<const uint16_t>(t), x.columns);
  });
}

void CpuBackend::target_logprobs(const TensorView& logits, std::span<const int32_t> targets,
                                 std::span<float> out) {
  const auto timer = time(&CpuProfile::logits);
  check_matrix(logits, static_cast<int64_t>(targets.size()), logits.columns);
  EXACT_CHECK(supports_vocabulary(logits.columns).is_ok(), "a vocabulary of the contract");
  EXACT_CHECK(out.size() == targets.size(), "one log-probability a target");
  for (const int32_t target : targets) {
    EXACT_CHECK(target >= 0 && target < logits.columns, "a target outside the vocabulary");
  }
  note(cpu::target_logprobs(context_, logits, targets, out));
}

void CpuBackend::sample(const TensorView& logits, std::span<const SampleRow> rows,
                        std::span<SampleOutcome> outcomes) {
  const auto timer = time(&CpuProfile::logits);
  check_matrix(logits, logits.rows, logits.columns);
  EXACT_CHECK(supports_vocabulary(logits.columns).is_ok(), "a vocabulary of the contract");
  EXACT_CHECK(outcomes.size() == rows.size(), "one outcome a row");
  for (const SampleRow& row : rows) {
    EXACT_CHECK(row.row >= 0 && row.row < logits.rows, "a row outside the logits");
    EXACT_CHECK(row.temperature >= 0.0f && row.top_k >= 0 && row.top_p >= 0.0f &&
                    row.top_p <= 1.0f && row.min_p >= 0.0f && row.min_p <= 1.0f,
                "sampling parameters in range");
  }
  note(cpu::sample(context_, logits, rows, outcomes));
}

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
  return std::unique_ptr<Backend>(
      std::make_unique<CpuBackend>(options.isa, std::min(threads, kMaxThreads), options.profile));
}

}  // namespace exact
