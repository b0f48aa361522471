// operations.cc owns the operations of the CPU's Backend: each checks what its caller promises, and
// hands rows, panels or heads to the threads.
#include "kernels/cpu/cpu_backend_class.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/logits.h"

namespace exact::cpu {

int64_t CpuBackend::begin_step(const StepRows& step) {
  EXACT_CHECK(step.ids.size() == step.positions.size(), "every row has a position");
  step_ = step;
  return static_cast<int64_t>(step.ids.size());
}

void CpuBackend::embed(const TensorView& table, const TensorView& out) {
  const auto timer = time(&CpuProfile::copies);
  const std::span<const int32_t> ids = step_.ids;
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
  EXACT_CHECK(weight.storage.bytes() >= packed_bytes(weight.out_features, weight.in_features),
              "a weight that was not packed");
  const uint16_t* b = bias == nullptr ? nullptr : vector_data(*bias, weight.out_features);
  note(cpu::linear(context_, x, weight, b, out));
}

void CpuBackend::rope(const TensorView& x, const TensorView& cos_sin, const TensorView* head_norm,
                      float epsilon, NormForm form) {
  const auto timer = time(&CpuProfile::norm_rope);
  const std::span<const int32_t> positions = step_.positions;
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

void CpuBackend::check_step(int64_t row_count, int32_t layer, const KvCache& cache) const {
  const KvGeometry& geometry = cache.geometry;
  EXACT_CHECK(layer >= 0 && layer < geometry.layers, "a layer outside the cache");
  EXACT_CHECK(cache.storage.bytes() >= kv_bytes(geometry), "a cache without memory");
  for (const SequenceChunk& chunk : step_.chunks) {
    EXACT_CHECK(chunk.first_row >= 0 && chunk.row_count > 0 && chunk.first_position >= 0 &&
                    chunk.first_row + chunk.row_count <= row_count,
                "a chunk outside the step");
    const int64_t positions = int64_t{chunk.first_position} + chunk.row_count;
    const int64_t pages = piece_count(positions, geometry.page_size);
    EXACT_CHECK(static_cast<int64_t>(chunk.pages.size()) >= pages, "a chunk without its pages");
    for (int64_t i = 0; i < pages; i++) {
      const int32_t page = chunk.pages[static_cast<size_t>(i)];
      EXACT_CHECK(page >= 0 && page < geometry.pages, "a page outside the cache");
    }
  }
}

void CpuBackend::store_kv(const TensorView& keys, const TensorView& values, int32_t layer,
                          KvCache& cache) {
  const auto timer = time(&CpuProfile::copies);
  const int64_t width = int64_t{cache.geometry.kv_heads} * cache.geometry.head_width;
  check_matrix(keys, keys.rows, width);
  check_matrix(values, keys.rows, width);
  check_step(keys.rows, layer, cache);
  cpu::store_kv(context_, keys, values, step_.chunks, layer, cache);
}

void CpuBackend::attention(const TensorView& query, const KvCache& cache, int32_t layer,
                           const TensorView& out) {
  const auto timer = time(&CpuProfile::attention);
  const int64_t group_width = int64_t{cache.geometry.kv_heads} * cache.geometry.head_width;
  check_matrix(query, query.rows, query.columns);
  check_matrix(out, query.rows, query.columns);
  EXACT_CHECK(query.columns > 0 && query.columns % group_width == 0,
              "query heads are a multiple of kv heads");
  check_step(query.rows, layer, cache);
  note(cpu::attention(context_, query, cache, step_.chunks, layer, attention_tasks_, out));
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

}  // namespace exact::cpu
