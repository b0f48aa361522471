// operations.cc owns the operations of the CUDA backend: each checks what its caller promises, and
// launches the kernel that fits.
#include <algorithm>

#include "kernels/contract/shape.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_backend_class.h"
#include "kernels/cuda/decode_matmul.h"
#include "kernels/cuda/logits.h"

namespace exact::cuda {
namespace {

// Kernels load 16 bytes at a time.
constexpr int64_t kAligned = 8;  // elements

void check_matrix(const TensorView& view, int64_t rows, int64_t columns) {
  EXACT_CHECK(view.dtype == DType::bf16, "the CUDA backend's tensors are bf16");
  EXACT_CHECK(view.rows == rows && view.columns == columns, "a tensor of the wrong shape");
  EXACT_CHECK(rows == 0 || (view.data != nullptr && view.row_stride >= columns),
              "a tensor without memory, or with rows that overlap");
  EXACT_CHECK(view.columns % kAligned == 0 && (rows <= 1 || view.row_stride % kAligned == 0) &&
                  reinterpret_cast<uintptr_t>(view.data) % 16 == 0,
              "rows start at multiples of 16 bytes");
}

uint16_t* data_of(const TensorView& view) {
  return static_cast<uint16_t*>(view.data);
}
const uint16_t* vector_data(const TensorView& view, int64_t columns) {
  check_matrix(view, 1, columns);
  return data_of(view);
}
Rows rows_of(const TensorView& view) {
  return {data_of(view), view.row_stride};
}
ConstRows const_rows_of(const TensorView& view) {
  return {data_of(view), view.row_stride};
}

template <class T>
std::span<std::byte> writable_bytes(std::span<T> values) {
  return std::as_writable_bytes(values);
}

}  // namespace

void CudaBackend::embed(const TensorView& table, const TensorView& out) {
  check_matrix(table, table.rows, table.columns);
  check_matrix(out, step_.device().rows, table.columns);
  for (const int32_t id : host_step_.ids) {
    EXACT_CHECK(id >= 0 && id < table.rows, "a token id outside the table");
  }
  note(launch_embed(step_.device().ids, data_of(table), rows_of(out), out.rows, out.columns,
                    stream_));
}

void CudaBackend::rms_norm(const TensorView& x, const TensorView& weight, float epsilon,
                           NormForm form, const TensorView& out) {
  check_matrix(x, x.rows, x.columns);
  check_matrix(out, x.rows, x.columns);
  note(launch_rms_norm(const_rows_of(x), vector_data(weight, x.columns), epsilon, form,
                       rows_of(out), x.rows, x.columns, stream_));
}

void CudaBackend::add_rms_norm(const TensorView& x, const TensorView& y, const TensorView& weight,
                               float epsilon, NormForm form, const TensorView& out) {
  check_matrix(x, x.rows, x.columns);
  check_matrix(y, x.rows, x.columns);
  check_matrix(out, x.rows, x.columns);
  note(launch_add_rms_norm(rows_of(x), const_rows_of(y), vector_data(weight, x.columns), epsilon,
                           form, rows_of(out), x.rows, x.columns, stream_));
}

void CudaBackend::linear(const TensorView& x, const LinearWeight& weight, const TensorView* bias,
                         const TensorView& out) {
  check_matrix(x, x.rows, weight.in_features);
  check_matrix(out, x.rows, weight.out_features);
  MatmulInputs inputs;
  inputs.x = data_of(x);
  inputs.x_stride = x.row_stride;
  inputs.weight = static_cast<const uint16_t*>(weight.storage.data());
  inputs.bias = bias == nullptr ? nullptr : vector_data(*bias, weight.out_features);
  inputs.out = data_of(out);
  inputs.out_stride = out.row_stride;
  inputs.tokens = x.rows;
  inputs.out_features = weight.out_features;
  inputs.in_features = weight.in_features;
  note(multiply(inputs));
}

Status CudaBackend::multiply(const MatmulInputs& inputs) {
  if (inputs.tokens == 0) return {};
  if (prefers_decode_matmul(inputs.tokens, inputs.out_features, inputs.in_features)) {
    const auto plan = plan_decode_matmul(static_cast<int>(inputs.tokens), inputs.out_features,
                                         inputs.in_features, multiprocessors_);
    if (plan.is_ok()) {
      return launch_decode_matmul(*plan, inputs.weight, inputs.x, inputs.x_stride, inputs.bias,
                                  inputs.out, inputs.out_stride, stream_);
    }
  }
  const Status by_library = lt_->launch(inputs, stream_);
  if (by_library.code() != Code::unsupported) return by_library;
  return launch_plain_matmul(inputs, stream_);
}

void CudaBackend::rope(const TensorView& x, const TensorView& cos_sin, const TensorView* head_norm,
                       float epsilon, NormForm form) {
  const int64_t width = cos_sin.columns / 2;
  check_matrix(cos_sin, cos_sin.rows, 2 * width);
  check_matrix(x, step_.device().rows, x.columns);
  EXACT_CHECK(x.columns % width == 0, "rows of whole heads");
  const RopeInputs inputs{data_of(cos_sin), nullptr, nullptr, epsilon, form};
  note(launch_rope(rows_of(x), static_cast<int32_t>(x.columns / width), static_cast<int32_t>(width),
                   inputs, head_norm == nullptr ? nullptr : vector_data(*head_norm, width),
                   step_.device(), stream_));
}

void CudaBackend::store_kv(const TensorView& keys, const TensorView& values, int32_t layer,
                           KvCache& cache) {
  const int64_t width = int64_t{cache.geometry.kv_heads} * cache.geometry.head_width;
  check_matrix(keys, step_.device().rows, width);
  check_matrix(values, step_.device().rows, width);
  EXACT_CHECK(layer >= 0 && layer < cache.geometry.layers, "a layer outside the cache");
  note(launch_store_kv(const_rows_of(keys), const_rows_of(values), layer_pages(cache, layer),
                       step_.device(), stream_));
}

void CudaBackend::rope_store_kv(const TensorView& query, const TensorView& keys,
                                const TensorView& values, const RopeParameters& rope_parameters,
                                int32_t layer, KvCache& cache) {
  const int64_t head_width = cache.geometry.head_width;
  const int64_t width = cache.geometry.kv_heads * head_width;
  check_matrix(query, step_.device().rows, query.columns);
  check_matrix(keys, step_.device().rows, width);
  check_matrix(values, step_.device().rows, width);
  check_matrix(rope_parameters.cos_sin, rope_parameters.cos_sin.rows, 2 * head_width);
  EXACT_CHECK(query.columns % head_width == 0, "rows of whole heads");
  EXACT_CHECK(layer >= 0 && layer < cache.geometry.layers, "a layer outside the cache");
  const auto norm = [&](const TensorView* view) {
    return view == nullptr ? nullptr : vector_data(*view, head_width);
  };
  const RopeInputs inputs{data_of(rope_parameters.cos_sin), norm(rope_parameters.query_norm),
                          norm(rope_parameters.key_norm), rope_parameters.epsilon,
                          rope_parameters.form};
  note(launch_rope_store_kv(rows_of(query), static_cast<int32_t>(query.columns / head_width),
                            rows_of(keys), const_rows_of(values), inputs, layer_pages(cache, layer),
                            step_.device(), stream_));
}

Status CudaBackend::reserve_attention_scratch(int32_t query_heads) {
  const size_t bytes = decode_attention_scratch(step_.device().decode_sequences, query_heads,
                                                step_.device().max_decode_context);
  if (bytes <= attention_scratch_.bytes()) return {};
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  EXACT_RETURN_IF_ERROR(
      cuda_status(cudaStreamIsCapturing(stream_, &capturing), "the state of the stream"));
  EXACT_CHECK(capturing == cudaStreamCaptureStatusNone, "the first run of a step reserves memory");
  EXACT_RETURN_IF_ERROR(cuda_status(cudaStreamSynchronize(stream_), "the steps before"));
  recorder_.forget_all();  // they point to the old scratch
  attention_scratch_.reset();
  EXACT_ASSIGN(attention_scratch_, allocate_device(bytes));
  return {};
}

void CudaBackend::attention(const TensorView& query, const KvCache& cache, int32_t layer,
                            const TensorView& out) {
  const int32_t head_width = cache.geometry.head_width;
  check_matrix(query, step_.device().rows, query.columns);
  check_matrix(out, query.rows, query.columns);
  EXACT_CHECK(query.columns % (int64_t{cache.geometry.kv_heads} * head_width) == 0,
              "query heads are a multiple of kv heads");
  EXACT_CHECK(layer >= 0 && layer < cache.geometry.layers, "a layer outside the cache");
  AttentionInputs inputs;
  inputs.query = data_of(query);
  inputs.query_stride = query.row_stride;
  inputs.out = data_of(out);
  inputs.out_stride = out.row_stride;
  inputs.query_heads = static_cast<int32_t>(query.columns / head_width);
  inputs.pages = layer_pages(cache, layer);
  inputs.step = step_.device();
  if (!prefill_attention_covers(head_width)) return note(launch_plain_attention(inputs, stream_));
  if (inputs.step.query_tiles > 0) {
    note(launch_prefill_attention(inputs, multiprocessors_, stream_));
  }
  if (inputs.step.decode_sequences > 0) {
    note(reserve_attention_scratch(inputs.query_heads));
    if (!failure_.is_ok()) return;
    note(launch_decode_attention(inputs, DecodeAttentionForm::automatic, multiprocessors_,
                                 attention_scratch_.data(), attention_scratch_.bytes(), stream_));
  }
}

void CudaBackend::silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out) {
  check_matrix(gate, gate.rows, gate.columns);
  check_matrix(up, gate.rows, gate.columns);
  check_matrix(out, gate.rows, gate.columns);
  note(launch_silu_mul(const_rows_of(gate), const_rows_of(up), rows_of(out), gate.rows,
                       gate.columns, stream_));
}

void CudaBackend::add(const TensorView& x, const TensorView& y) {
  check_matrix(x, x.rows, x.columns);
  check_matrix(y, x.rows, x.columns);
  note(launch_add(rows_of(x), const_rows_of(y), x.rows, x.columns, stream_));
}

void CudaBackend::gather_rows(const TensorView& x, std::span<const int64_t> rows,
                              const TensorView& out) {
  check_matrix(x, x.rows, x.columns);
  check_matrix(out, static_cast<int64_t>(rows.size()), x.columns);
  std::vector<int32_t> indices;
  indices.reserve(rows.size());
  for (const int64_t row : rows) {
    EXACT_CHECK(row >= 0 && row < x.rows, "a row outside the tensor");
    indices.push_back(static_cast<int32_t>(row));
  }
  const auto device = arena_.push(std::as_bytes(std::span(indices)), stream_);
  if (!device.is_ok()) return note(device.status());
  note(launch_gather_rows(static_cast<const int32_t*>(*device), const_rows_of(x), rows_of(out),
                          out.rows, out.columns, stream_));
}

void CudaBackend::target_logprobs(const TensorView& logits, std::span<const int32_t> targets,
                                  std::span<float> out) {
  check_matrix(logits, static_cast<int64_t>(targets.size()), logits.columns);
  EXACT_CHECK(logits.row_stride == logits.columns, "logits are contiguous");
  EXACT_CHECK(out.size() == targets.size(), "one log-probability a target");
  for (const int32_t target : targets) {
    EXACT_CHECK(target >= 0 && target < logits.columns, "a target outside the vocabulary");
  }
  const auto device_targets = arena_.push(std::as_bytes(targets), stream_);
  if (!device_targets.is_ok()) return note(device_targets.status());
  const auto device_out = arena_.expect(writable_bytes(out));
  if (!device_out.is_ok()) return note(device_out.status());
  note(launch_target_logprobs(data_of(logits), logits.rows, logits.columns,
                              static_cast<const int32_t*>(*device_targets),
                              static_cast<float*>(*device_out), stream_));
}

void CudaBackend::sample(const TensorView& logits, std::span<const SampleRow> rows,
                         std::span<SampleOutcome> outcomes) {
  check_matrix(logits, logits.rows, logits.columns);
  EXACT_CHECK(logits.row_stride == logits.columns, "logits are contiguous");
  EXACT_CHECK(outcomes.size() == rows.size(), "one outcome a row");
  bool details = false;
  for (const SampleRow& row : rows) {
    EXACT_CHECK(row.row >= 0 && row.row < logits.rows, "a row outside the logits");
    EXACT_CHECK(row.temperature >= 0.0f && row.top_k >= 0 && row.top_p >= 0.0f &&
                    row.top_p <= 1.0f && row.min_p >= 0.0f && row.min_p <= 1.0f,
                "sampling parameters in range");
    details = details || row.detail != nullptr;
  }
  if (details) return note(sample_apart(logits, rows, outcomes));
  const auto device_outcomes = arena_.expect(writable_bytes(outcomes));
  if (!device_outcomes.is_ok()) return note(device_outcomes.status());
  note(sample_plain(logits, rows, *device_outcomes));
}

Status CudaBackend::sample_plain(const TensorView& logits, std::span<const SampleRow> rows,
                                 void* device_outcomes) {
  const bool filters = std::any_of(rows.begin(), rows.end(), [](const SampleRow& row) {
    return row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
  });
  EXACT_ASSIGN(const void* device_rows, arena_.push(std::as_bytes(rows), stream_));
  return launch_sample(data_of(logits), logits.columns, static_cast<const SampleRow*>(device_rows),
                       static_cast<int64_t>(rows.size()), filters,
                       static_cast<SampleOutcome*>(device_outcomes), stream_);
}

// Rows with a detail by their own kernel, the others as they are drawn without such neighbours.
Status CudaBackend::sample_apart(const TensorView& logits, std::span<const SampleRow> rows,
                                 std::span<SampleOutcome> outcomes) {
  std::vector<RowToDraw> detailed;
  std::vector<SampleRow> plain;
  std::vector<SampleOutcome*> plain_outcomes;
  for (size_t i = 0; i < rows.size(); i++) {
    if (rows[i].detail != nullptr) {
      detailed.push_back({&rows[i], &outcomes[i]});
    } else {
      plain.push_back(rows[i]);
      plain_outcomes.push_back(&outcomes[i]);
    }
  }
  EXACT_RETURN_IF_ERROR(
      detailed_rows_.sample(data_of(logits), logits.columns, detailed, arena_, stream_));
  if (plain.empty()) return {};
  EXACT_ASSIGN(
      void* device_outcomes,
      arena_.expect(plain.size() * sizeof(SampleOutcome), [plain_outcomes](const std::byte* at) {
        const auto* from = reinterpret_cast<const SampleOutcome*>(at);
        for (SampleOutcome* outcome : plain_outcomes) *outcome = *from++;
      }));
  return sample_plain(logits, plain, device_outcomes);
}

}  // namespace exact::cuda
