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
  EXACT_RETURN_IF_ERROR(backend.supports_linear(query_width + 2 * kv_width, width));
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
    auto memory = backend_.allocate(static_cast<size_t>(max_rows_ * columns) * 2);
    if (!memory.is_ok()) return memory.status();
    buffer = std::move(memory).value();
    return {};
  };
  for (Buffer* buffer : {&hidden_, &normed_, &projected_, &logit_hidden_}) {
    EXACT_RETURN_IF_ERROR(take(*buffer, config_.width));
  }
  EXACT_RETURN_IF_ERROR(take(qkv_, query_width + 2 * kv_width));
  EXACT_RETURN_IF_ERROR(take(attended_, query_width));
  EXACT_RETURN_IF_ERROR(take(gate_up_, 2 * int64_t{config_.feed_forward_width}));
  EXACT_RETURN_IF_ERROR(take(activated_, config_.feed_forward_width));
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

void Model::forward(const ModelWeights& weights, const StepRows& step, KvCache& cache) {
  const auto rows = static_cast<int64_t>(step.ids.size());
  EXACT_CHECK(rows > 0 && rows <= limits_.max_rows, "a step with no rows or too many");
  EXACT_CHECK(step.positions.size() == step.ids.size(), "every row has a position");
  rows_ = backend_.begin_step(step);
  EXACT_CHECK(rows_ >= rows && rows_ <= max_rows_, "padding beyond the activations");
  if (tap_) return run_layers(weights, cache);  // a tap reads what lies between
  const uint64_t key[] = {identity_, weights.identity,
                          reinterpret_cast<uintptr_t>(cache.storage.data())};
  const auto layers = [&] { run_layers(weights, cache); };
  backend_.run_recorded(key, std::cref(layers));  // a copy would not fit without an allocation
}

void Model::run_layers(const ModelWeights& weights, KvCache& cache) {
  const TensorView hidden = hidden_.view(DType::bf16, rows_, config_.width);
  const TensorView normed = normed_.view(DType::bf16, rows_, config_.width);
  const TensorView projected = projected_.view(DType::bf16, rows_, config_.width);
  const auto norm = [&](const Buffer& weight) { return norm_weight(weight, config_.width); };

  backend_.embed(weights.embedding.view(DType::bf16, config_.vocabulary, config_.width), hidden);
  if (tap_) tap_(0, hidden);
  backend_.rms_norm(hidden, norm(weights.layers[0].input_norm), config_.norm_epsilon,
                    config_.norm_form, normed);
  for (int32_t layer = 0; layer < config_.layers; layer++) {
    const LayerWeights& own = weights.layers[static_cast<size_t>(layer)];
    attention_block(own, layer, cache);
    backend_.add_rms_norm(hidden, projected, norm(own.post_norm), config_.norm_epsilon,
                          config_.norm_form, normed);
    feed_forward_block(own);
    const bool last = layer + 1 == config_.layers;
    const Buffer& next_norm =
        last ? weights.final_norm : weights.layers[static_cast<size_t>(layer) + 1].input_norm;
    backend_.add_rms_norm(hidden, projected, norm(next_norm), config_.norm_epsilon,
                          config_.norm_form, normed);
    if (tap_) tap_(layer + 1, last ? normed : hidden);
  }
}

// projected = o_proj(attention(rope(q_proj(normed)), ...))
void Model::attention_block(const LayerWeights& layer, int32_t layer_index, KvCache& cache) {
  const int64_t head_width = config_.head_width;
  const int64_t query_width = config_.query_heads * head_width;
  const int64_t kv_width = config_.kv_heads * head_width;
  const TensorView qkv = qkv_.view(DType::bf16, rows_, query_width + 2 * kv_width);
  const TensorView query = qkv.slice_columns(0, query_width);
  const TensorView key = qkv.slice_columns(query_width, kv_width);
  const TensorView value = qkv.slice_columns(query_width + kv_width, kv_width);
  const TensorView attended = attended_.view(DType::bf16, rows_, query_width);

  linear(normed_.view(DType::bf16, rows_, config_.width), layer.qkv, layer.qkv_bias, qkv);
  RopeParameters rope;
  rope.cos_sin = rope_table_.view(DType::bf16, limits_.max_context, 2 * head_width);
  rope.epsilon = config_.norm_epsilon;
  rope.form = config_.norm_form;
  TensorView query_norm, key_norm;
  if (config_.head_norm) {
    query_norm = norm_weight(layer.query_norm, head_width);
    key_norm = norm_weight(layer.key_norm, head_width);
    rope.query_norm = &query_norm;
    rope.key_norm = &key_norm;
  }
  backend_.rope_store_kv(query, key, value, rope, layer_index, cache);
  backend_.attention(query, cache, layer_index, attended);
  linear(attended, layer.output, layer.output_bias,
         projected_.view(DType::bf16, rows_, config_.width));
}

// projected = down_proj(silu(gate_proj(normed)) * up_proj(normed))
void Model::feed_forward_block(const LayerWeights& layer) {
  const int64_t width = config_.feed_forward_width;
  const TensorView gate_up = gate_up_.view(DType::bf16, rows_, 2 * width);
  const TensorView activated = activated_.view(DType::bf16, rows_, width);

  linear(normed_.view(DType::bf16, rows_, config_.width), layer.gate_up, layer.gate_up_bias,
         gate_up);
  backend_.silu_mul(gate_up.slice_columns(0, width), gate_up.slice_columns(width, width),
                    activated);
  linear(activated, layer.down, layer.down_bias,
         projected_.view(DType::bf16, rows_, config_.width));
}

TensorView Model::logits(const ModelWeights& weights, std::span<const int64_t> rows) {
  const auto count = static_cast<int64_t>(rows.size());
  EXACT_CHECK(count > 0 && count <= limits_.max_rows, "logits of no rows or too many");
  const TensorView normed = normed_.view(DType::bf16, rows_, config_.width);
  const TensorView wanted = logit_hidden_.view(DType::bf16, count, config_.width);
  const TensorView out = logits_.view(DType::bf16, count, config_.vocabulary);
  backend_.gather_rows(normed, rows, wanted);
  backend_.linear(wanted, weights.lm_head, nullptr, out);
  return out;
}

}  // namespace exact
