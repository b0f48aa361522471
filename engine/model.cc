#include "engine/model.h"

#include <vector>

#include "kernels/contract/shape.h"

namespace exact {

Result<std::unique_ptr<Model>> Model::create(const ModelConfig& config, Backend& backend,
                                             const ModelLimits& limits) {
  const int64_t width = config.width, feed_forward = config.feed_forward_width;
  const int64_t query_width = int64_t{config.query_heads} * config.head_width;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_width;
  EXACT_RETURN_IF_ERROR(contract::check_norm_width(width));
  if (config.head_norm) EXACT_RETURN_IF_ERROR(contract::check_norm_width(config.head_width));
  EXACT_RETURN_IF_ERROR(backend.supports_linear(query_width, width));
  EXACT_RETURN_IF_ERROR(backend.supports_linear(kv_width, width));
  EXACT_RETURN_IF_ERROR(backend.supports_linear(width, query_width));
  EXACT_RETURN_IF_ERROR(backend.supports_linear(feed_forward, width));
  EXACT_RETURN_IF_ERROR(backend.supports_linear(width, feed_forward));
  EXACT_RETURN_IF_ERROR(backend.supports_linear(config.vocabulary, width));
  EXACT_RETURN_IF_ERROR(backend.supports_vocabulary(config.vocabulary));
  EXACT_RETURN_IF_ERROR(
      backend.supports_attention(config.query_heads, config.kv_heads, config.head_width));
  std::unique_ptr<Model> model(new Model(config, backend, limits));
  EXACT_RETURN_IF_ERROR(model->allocate());
  EXACT_RETURN_IF_ERROR(model->build_rope_table());
  return model;
}

Status Model::allocate() {
  const int64_t query_width = int64_t{config_.query_heads} * config_.head_width;
  const int64_t kv_width = int64_t{config_.kv_heads} * config_.head_width;
  const auto take = [&](Buffer& buffer, int64_t columns) -> Status {
    auto memory = backend_.allocate(static_cast<size_t>(limits_.max_rows * columns) * 2);
    if (!memory.is_ok()) return memory.status();
    buffer = std::move(memory).value();
    return {};
  };
  for (Buffer* buffer : {&hidden_, &normed_, &projected_, &logit_hidden_}) {
    EXACT_RETURN_IF_ERROR(take(*buffer, config_.width));
  }
  for (Buffer* buffer : {&query_, &attended_}) EXACT_RETURN_IF_ERROR(take(*buffer, query_width));
  for (Buffer* buffer : {&key_, &value_}) EXACT_RETURN_IF_ERROR(take(*buffer, kv_width));
  for (Buffer* buffer : {&gate_, &up_}) {
    EXACT_RETURN_IF_ERROR(take(*buffer, config_.feed_forward_width));
  }
  return take(logits_, config_.vocabulary);
}

Status Model::build_rope_table() {
  const int64_t row_width = 2 * int64_t{config_.head_width};
  const std::vector<float> frequencies = inverse_frequencies(config_.rope);
  std::vector<uint16_t> table(static_cast<size_t>(limits_.max_context * row_width));
  for (int32_t position = 0; position < limits_.max_context; position++) {
    rope_row(frequencies, position,
             std::span(table).subspan(static_cast<size_t>(position * row_width),
                                      static_cast<size_t>(row_width)));
  }
  EXACT_ASSIGN(rope_table_, backend_.allocate(table.size() * 2));
  backend_.upload(rope_table_.view(DType::bf16, limits_.max_context, row_width),
                  std::as_bytes(std::span(table)));
  return backend_.finish();
}

TensorView Model::norm_weight(const Buffer& weight, int64_t width) const {
  return weight.view(DType::bf16, 1, width);
}

void Model::linear(const TensorView& x, const LinearWeight& weight, const Buffer& bias,
                   const TensorView& out) {
  if (bias.data() == nullptr) return backend_.linear(x, weight, nullptr, out);
  const TensorView bias_view = bias.view(DType::bf16, 1, weight.out_features);
  backend_.linear(x, weight, &bias_view, out);
}

void Model::forward(const ModelWeights& weights, const StepInput& step, KvCache& cache) {
  const auto rows = static_cast<int64_t>(step.ids.size());
  EXACT_CHECK(rows > 0 && rows <= limits_.max_rows, "a step with no rows or too many");
  EXACT_CHECK(step.positions.size() == step.ids.size(), "every row has a position");
  const TensorView hidden = hidden_.view(DType::bf16, rows, config_.width);
  const TensorView normed = normed_.view(DType::bf16, rows, config_.width);

  backend_.embed(step.ids, weights.embedding.view(DType::bf16, config_.vocabulary, config_.width),
                 hidden);
  for (int32_t layer = 0; layer < config_.layers; layer++) {
    const LayerWeights& layer_weights = weights.layers[static_cast<size_t>(layer)];
    if (tap_) tap_(layer, hidden);
    attention_block(layer_weights, layer, step, cache);
    feed_forward_block(layer_weights, rows);
  }
  backend_.rms_norm(hidden, norm_weight(weights.final_norm, config_.width), config_.norm_epsilon,
                    config_.norm_form, normed);
  if (tap_) tap_(config_.layers, normed);
}

// hidden += o_proj(attention(rope(q_proj(norm(hidden))), ...))
void Model::attention_block(const LayerWeights& layer, int32_t layer_index, const StepInput& step,
                            KvCache& cache) {
  const auto rows = static_cast<int64_t>(step.ids.size());
  const int64_t head_width = config_.head_width;
  const TensorView hidden = hidden_.view(DType::bf16, rows, config_.width);
  const TensorView normed = normed_.view(DType::bf16, rows, config_.width);
  const TensorView projected = projected_.view(DType::bf16, rows, config_.width);
  const TensorView query = query_.view(DType::bf16, rows, config_.query_heads * head_width);
  const TensorView attended = attended_.view(DType::bf16, rows, config_.query_heads * head_width);
  const TensorView key = key_.view(DType::bf16, rows, config_.kv_heads * head_width);
  const TensorView value = value_.view(DType::bf16, rows, config_.kv_heads * head_width);
  const TensorView cos_sin = rope_table_.view(DType::bf16, limits_.max_context, 2 * head_width);

  backend_.rms_norm(hidden, norm_weight(layer.input_norm, config_.width), config_.norm_epsilon,
                    config_.norm_form, normed);
  linear(normed, layer.query, layer.query_bias, query);
  linear(normed, layer.key, layer.key_bias, key);
  linear(normed, layer.value, layer.value_bias, value);

  const TensorView query_norm =
      config_.head_norm ? norm_weight(layer.query_norm, head_width) : TensorView();
  const TensorView key_norm =
      config_.head_norm ? norm_weight(layer.key_norm, head_width) : TensorView();
  backend_.rope(query, step.positions, cos_sin, config_.head_norm ? &query_norm : nullptr,
                config_.norm_epsilon, config_.norm_form);
  backend_.rope(key, step.positions, cos_sin, config_.head_norm ? &key_norm : nullptr,
                config_.norm_epsilon, config_.norm_form);

  backend_.store_kv(key, value, step.chunks, layer_index, cache);
  backend_.attention(query, cache, step.chunks, layer_index, attended);
  linear(attended, layer.output, layer.output_bias, projected);
  backend_.add(hidden, projected);
}

// hidden += down_proj(silu(gate_proj(norm(hidden))) * up_proj(norm(hidden)))
void Model::feed_forward_block(const LayerWeights& layer, int64_t rows) {
  const TensorView hidden = hidden_.view(DType::bf16, rows, config_.width);
  const TensorView normed = normed_.view(DType::bf16, rows, config_.width);
  const TensorView projected = projected_.view(DType::bf16, rows, config_.width);
  const TensorView gate = gate_.view(DType::bf16, rows, config_.feed_forward_width);
  const TensorView up = up_.view(DType::bf16, rows, config_.feed_forward_width);

  backend_.rms_norm(hidden, norm_weight(layer.post_norm, config_.width), config_.norm_epsilon,
                    config_.norm_form, normed);
  linear(normed, layer.gate, layer.gate_bias, gate);
  linear(normed, layer.up, layer.up_bias, up);
  backend_.silu_mul(gate, up, gate);
  linear(gate, layer.down, layer.down_bias, projected);
  backend_.add(hidden, projected);
}

TensorView Model::logits(const ModelWeights& weights, std::span<const int64_t> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  EXACT_CHECK(count > 0 && count <= limits_.max_rows, "logits of no rows or too many");
  const TensorView normed = normed_.view(DType::bf16, limits_.max_rows, config_.width);
  const TensorView wanted = logit_hidden_.view(DType::bf16, count, config_.width);
  const TensorView out = logits_.view(DType::bf16, count, config_.vocabulary);
  backend_.gather_rows(normed, rows, wanted);
  backend_.linear(wanted, weights.lm_head, nullptr, out);
  return out;
}

}  // namespace exact
