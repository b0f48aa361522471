#include "trainer_bridge/contract_ops.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "kernels/contract/rope.h"
#include "kernels/contract/shape.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact::bridge {
namespace {

constexpr int32_t kPageSize = 64;

// Operations take views that could be written; they write only what is theirs.
TensorView view(Bf16Span values, int64_t rows, int64_t columns) {
  return {const_cast<uint16_t*>(values.data()), DType::bf16, rows, columns};
}

// The rows of a matrix of `columns`.
Result<int64_t> rows_of(const char* name, size_t elements, int64_t columns) {
  if (columns <= 0 || elements % static_cast<size_t>(columns) != 0) {
    return Status(Code::invalid, std::string(name) + " has " + std::to_string(elements) +
                                     " elements, which are no rows of " + std::to_string(columns));
  }
  return static_cast<int64_t>(elements) / columns;
}

Status check_size(const char* name, size_t elements, int64_t wanted) {
  if (wanted >= 0 && elements == static_cast<size_t>(wanted)) return {};
  return Status(Code::invalid, std::string(name) + " has " + std::to_string(elements) +
                                   " elements and must have " + std::to_string(wanted));
}

// The pages that sequences of these lengths fill, one after the other, and their chunks.
class PackedSequences {
 public:
  explicit PackedSequences(std::span<const int32_t> lengths) {
    for (const int32_t length : lengths) pages_ += (length + kPageSize - 1) / kPageSize;
    page_numbers_.resize(static_cast<size_t>(pages_));
    std::iota(page_numbers_.begin(), page_numbers_.end(), 0);
    size_t first_page = 0;
    int64_t row = 0;
    for (const int32_t length : lengths) {
      const auto own = static_cast<size_t>((length + kPageSize - 1) / kPageSize);
      chunks_.push_back({row, length, 0, std::span(page_numbers_).subspan(first_page, own)});
      for (int32_t position = 0; position < length; position++) positions_.push_back(position);
      row += length;
      first_page += own;
    }
    ids_.resize(static_cast<size_t>(row));
  }

  int32_t pages() const { return pages_; }
  StepRows rows() const { return {ids_, positions_, chunks_}; }

 private:
  int32_t pages_ = 0;
  std::vector<int32_t> page_numbers_, ids_, positions_;
  std::vector<SequenceChunk> chunks_;
};

}  // namespace

Result<std::unique_ptr<ContractOps>> ContractOps::create(int threads) {
  CpuOptions options;
  options.threads = threads;
  EXACT_ASSIGN(auto backend, make_cpu_backend(options));
  return std::unique_ptr<ContractOps>(new ContractOps(std::move(backend)));
}

Status ContractOps::linear(int64_t in_features, Bf16Span x, Bf16Span weight, Bf16Span bias,
                           Bf16Out out) {
  EXACT_ASSIGN(const int64_t rows, rows_of("x", x.size(), in_features));
  EXACT_ASSIGN(const int64_t out_features, rows_of("weight", weight.size(), in_features));
  EXACT_RETURN_IF_ERROR(backend_->supports_linear(out_features, in_features));
  if (!bias.empty()) EXACT_RETURN_IF_ERROR(check_size("bias", bias.size(), out_features));
  EXACT_RETURN_IF_ERROR(check_size("out", out.size(), rows * out_features));
  if (rows == 0) return {};
  LinearWeight packed;
  EXACT_RETURN_IF_ERROR(backend_->pack_whole(view(weight, out_features, in_features), packed));
  const TensorView bias_view = view(bias, 1, out_features);
  backend_->linear(view(x, rows, in_features), packed, bias.empty() ? nullptr : &bias_view,
                   view(out, rows, out_features));
  return backend_->finish();
}

Status ContractOps::rms_norm(Bf16Span x, Bf16Span weight, float epsilon, Bf16Out out) {
  const auto width = static_cast<int64_t>(weight.size());
  EXACT_RETURN_IF_ERROR(contract::check_norm_width(width));
  EXACT_ASSIGN(const int64_t rows, rows_of("x", x.size(), width));
  EXACT_RETURN_IF_ERROR(check_size("out", out.size(), rows * width));
  if (rows == 0) return {};
  backend_->rms_norm(view(x, rows, width), view(weight, 1, width), epsilon, NormForm::hf,
                     view(out, rows, width));
  return backend_->finish();
}

Status ContractOps::rope(Bf16Out x, std::span<const int32_t> positions, int64_t head_width,
                         Bf16Span cos_sin) {
  EXACT_RETURN_IF_ERROR(contract::check_head_width(head_width));
  EXACT_ASSIGN(const int64_t table_rows, rows_of("cos_sin", cos_sin.size(), 2 * head_width));
  if (positions.empty()) return check_size("x", x.size(), 0);
  const auto rows = static_cast<int64_t>(positions.size());
  EXACT_ASSIGN(const int64_t width, rows_of("x", x.size(), rows));
  EXACT_ASSIGN(const int64_t heads, rows_of("a row of x", static_cast<size_t>(width), head_width));
  if (heads == 0) return Status(Code::invalid, "x has rows without a head");
  const auto [low, high] = std::minmax_element(positions.begin(), positions.end());
  if (*low < 0 || *high >= table_rows) {
    return Status(Code::invalid, "positions go from " + std::to_string(*low) + " to " +
                                     std::to_string(*high) + ", the table has " +
                                     std::to_string(table_rows) + " rows");
  }
  const std::vector<int32_t> ids(positions.size());
  backend_->begin_step({ids, positions, {}});
  backend_->rope(view(x, rows, width), view(cos_sin, table_rows, 2 * head_width), nullptr, 0,
                 NormForm::hf);
  return backend_->finish();
}

Status ContractOps::attention(const AttentionSizes& sizes, std::span<const int32_t> lengths,
                              Bf16Span query, Bf16Span keys, Bf16Span values, Bf16Out out) {
  EXACT_RETURN_IF_ERROR(
      backend_->supports_attention(sizes.query_heads, sizes.kv_heads, sizes.head_width));
  const int64_t query_width = int64_t{sizes.query_heads} * sizes.head_width;
  const int64_t kv_width = int64_t{sizes.kv_heads} * sizes.head_width;
  EXACT_ASSIGN(const int64_t rows, rows_of("query", query.size(), query_width));
  EXACT_RETURN_IF_ERROR(check_size("keys", keys.size(), rows * kv_width));
  EXACT_RETURN_IF_ERROR(check_size("values", values.size(), rows * kv_width));
  EXACT_RETURN_IF_ERROR(check_size("out", out.size(), rows * query_width));
  int64_t sum = 0;
  for (const int32_t length : lengths) {
    if (length <= 0) return Status(Code::invalid, "lengths has one that is not above 0");
    sum += length;
  }
  if (sum != rows) {
    return Status(Code::invalid, "lengths add up to " + std::to_string(sum) + ", query has " +
                                     std::to_string(rows) + " rows");
  }
  if (rows == 0) return {};
  const PackedSequences sequences(lengths);
  EXACT_ASSIGN(KvCache cache, backend_->allocate_kv({1, sequences.pages(), kPageSize,
                                                     sizes.kv_heads, sizes.head_width}));
  backend_->begin_step(sequences.rows());
  backend_->store_kv(view(keys, rows, kv_width), view(values, rows, kv_width), 0, cache);
  backend_->attention(view(query, rows, query_width), cache, 0, view(out, rows, query_width));
  return backend_->finish();
}

Status ContractOps::silu_mul(Bf16Span gate, Bf16Span up, Bf16Out out) {
  const auto elements = static_cast<int64_t>(gate.size());
  EXACT_RETURN_IF_ERROR(check_size("up", up.size(), elements));
  EXACT_RETURN_IF_ERROR(check_size("out", out.size(), elements));
  if (elements == 0) return {};
  backend_->silu_mul(view(gate, 1, elements), view(up, 1, elements), view(out, 1, elements));
  return backend_->finish();
}

Status ContractOps::target_logprobs(int64_t vocabulary, Bf16Span logits,
                                    std::span<const int32_t> targets, std::span<float> out) {
  EXACT_RETURN_IF_ERROR(backend_->supports_vocabulary(vocabulary));
  const auto rows = static_cast<int64_t>(targets.size());
  EXACT_RETURN_IF_ERROR(check_size("logits", logits.size(), rows * vocabulary));
  EXACT_RETURN_IF_ERROR(check_size("out", out.size(), rows));
  for (const int32_t target : targets) {
    if (target < 0 || target >= vocabulary) {
      return Status(Code::invalid, "target " + std::to_string(target) +
                                       " is outside the vocabulary of " +
                                       std::to_string(vocabulary));
    }
  }
  if (rows == 0) return {};
  backend_->target_logprobs(view(logits, rows, vocabulary), targets, out);
  return backend_->finish();
}

std::vector<uint16_t> rope_table(const ModelConfig& config, int32_t count) {
  const auto width = static_cast<size_t>(2 * config.head_width);
  const std::vector<float> frequencies = inverse_frequencies(config.rope);
  const float scale = rope_attention_scale(config.rope);
  std::vector<uint16_t> table(static_cast<size_t>(std::max(count, 0)) * width);
  for (int32_t position = 0; position < count; position++) {
    rope_row(frequencies, position,
             std::span(table).subspan(static_cast<size_t>(position) * width, width), scale);
  }
  return table;
}

}  // namespace exact::bridge
