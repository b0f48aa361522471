// weight_places.h owns where each tensor of a model lies among its weights: which matrix or vector,
// and how far into it.
#pragma once

#include "engine/config.h"
#include "engine/tensor_table.h"
#include "engine/weights.h"

namespace exact {

// Where a tensor of the table lives: rows of a matrix packed by the backend, or columns of a vector
// or plain rows. Either may hold tensors beside it.
struct WeightPlace {
  LinearWeight* matrix = nullptr;
  Buffer* plain = nullptr;
  int64_t offset = 0;  // rows of the matrix, or elements of the plain buffer, that come before
  int64_t total = 0;   // rows of the whole matrix, or elements of the whole buffer
};

class WeightPlaces {
 public:
  WeightPlaces(const ModelConfig& config, ModelWeights& weights)
      : query_(int64_t{config.query_heads} * config.head_width),
        kv_(int64_t{config.kv_heads} * config.head_width),
        feed_forward_(config.feed_forward_width),
        weights_(weights) {}

  WeightPlace of(const TensorSpec& spec) const {
    if (spec.layer >= 0) return in_layer(spec, weights_.layers[static_cast<size_t>(spec.layer)]);
    if (spec.role == TensorRole::embedding) return plain(spec, weights_.embedding);
    if (spec.role == TensorRole::final_norm) return plain(spec, weights_.final_norm);
    return matrix(spec, weights_.lm_head);
  }

 private:
  static WeightPlace plain(const TensorSpec& spec, Buffer& buffer) {
    return {nullptr, &buffer, 0, spec.rows * spec.columns};
  }
  static WeightPlace matrix(const TensorSpec& spec, LinearWeight& weight) {
    return {&weight, nullptr, 0, spec.rows};
  }
  WeightPlace qkv(LinearWeight* matrix, Buffer* bias, int64_t offset) const {
    return {matrix, bias, offset, query_ + 2 * kv_};
  }
  WeightPlace gate_up(LinearWeight* matrix, Buffer* bias, int64_t offset) const {
    return {matrix, bias, offset, 2 * feed_forward_};
  }

  WeightPlace in_layer(const TensorSpec& spec, LayerWeights& layer) const {
    switch (spec.role) {
      case TensorRole::input_norm:
        return plain(spec, layer.input_norm);
      case TensorRole::post_norm:
        return plain(spec, layer.post_norm);
      case TensorRole::query_norm:
        return plain(spec, layer.query_norm);
      case TensorRole::key_norm:
        return plain(spec, layer.key_norm);
      case TensorRole::query:
        return qkv(&layer.qkv, nullptr, 0);
      case TensorRole::key:
        return qkv(&layer.qkv, nullptr, query_);
      case TensorRole::value:
        return qkv(&layer.qkv, nullptr, query_ + kv_);
      case TensorRole::query_bias:
        return qkv(nullptr, &layer.qkv_bias, 0);
      case TensorRole::key_bias:
        return qkv(nullptr, &layer.qkv_bias, query_);
      case TensorRole::value_bias:
        return qkv(nullptr, &layer.qkv_bias, query_ + kv_);
      case TensorRole::output:
        return matrix(spec, layer.output);
      case TensorRole::output_bias:
        return plain(spec, layer.output_bias);
      case TensorRole::gate:
        return gate_up(&layer.gate_up, nullptr, 0);
      case TensorRole::up:
        return gate_up(&layer.gate_up, nullptr, feed_forward_);
      case TensorRole::gate_bias:
        return gate_up(nullptr, &layer.gate_up_bias, 0);
      case TensorRole::up_bias:
        return gate_up(nullptr, &layer.gate_up_bias, feed_forward_);
      case TensorRole::down:
        return matrix(spec, layer.down);
      case TensorRole::down_bias:
        return plain(spec, layer.down_bias);
      case TensorRole::embedding:
      case TensorRole::final_norm:
      case TensorRole::lm_head:
        break;
    }
    EXACT_CHECK(false, "a tensor of no layer has a layer's index");
  }

  int64_t query_, kv_, feed_forward_;  // widths: H E, G E, F
  ModelWeights& weights_;
};

}  // namespace exact
