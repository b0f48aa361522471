#include "engine/tensor_table.h"

#include <utility>

namespace exact {
namespace {

// Collects specs; Hugging Face's own order of parameters inside a layer.
class TableBuilder {
 public:
  explicit TableBuilder(const ModelConfig& config) : config_(config) {}

  void matrix(const std::string& name, TensorRole role, int32_t layer, int64_t rows,
              int64_t columns) {
    table_.push_back({name + ".weight", role, layer, rows, columns, false});
  }
  void vector(const std::string& name, TensorRole role, int32_t layer, int64_t columns) {
    table_.push_back({name, role, layer, 1, columns, true});
  }

  void layer(int32_t index) {
    const std::string prefix = "model.layers." + std::to_string(index) + ".";
    attention(prefix + "self_attn.", index);
    feed_forward(prefix + "mlp.", index);
    vector(prefix + "input_layernorm.weight", TensorRole::input_norm, index, config_.width);
    vector(prefix + "post_attention_layernorm.weight", TensorRole::post_norm, index, config_.width);
  }

  std::vector<TensorSpec> take() { return std::move(table_); }

 private:
  void linear(const std::string& name, TensorRole role, TensorRole bias_role, bool has_bias,
              int32_t layer, int64_t rows, int64_t columns) {
    matrix(name, role, layer, rows, columns);
    if (has_bias) vector(name + ".bias", bias_role, layer, rows);
  }

  void attention(const std::string& prefix, int32_t index) {
    const int64_t query_width = int64_t{config_.query_heads} * config_.head_width;
    const int64_t kv_width = int64_t{config_.kv_heads} * config_.head_width;
    linear(prefix + "q_proj", TensorRole::query, TensorRole::query_bias, config_.qkv_bias, index,
           query_width, config_.width);
    linear(prefix + "k_proj", TensorRole::key, TensorRole::key_bias, config_.qkv_bias, index,
           kv_width, config_.width);
    linear(prefix + "v_proj", TensorRole::value, TensorRole::value_bias, config_.qkv_bias, index,
           kv_width, config_.width);
    linear(prefix + "o_proj", TensorRole::output, TensorRole::output_bias, config_.output_bias,
           index, config_.width, query_width);
    if (!config_.head_norm) return;
    vector(prefix + "q_norm.weight", TensorRole::query_norm, index, config_.head_width);
    vector(prefix + "k_norm.weight", TensorRole::key_norm, index, config_.head_width);
  }

  void feed_forward(const std::string& prefix, int32_t index) {
    const int64_t width = config_.width, inner = config_.feed_forward_width;
    linear(prefix + "gate_proj", TensorRole::gate, TensorRole::gate_bias, config_.mlp_bias, index,
           inner, width);
    linear(prefix + "up_proj", TensorRole::up, TensorRole::up_bias, config_.mlp_bias, index, inner,
           width);
    linear(prefix + "down_proj", TensorRole::down, TensorRole::down_bias, config_.mlp_bias, index,
           width, inner);
  }

  const ModelConfig& config_;
  std::vector<TensorSpec> table_;
};

}  // namespace

std::vector<TensorSpec> tensor_table(const ModelConfig& config) {
  TableBuilder table(config);
  table.matrix("model.embed_tokens", TensorRole::embedding, -1, config.vocabulary, config.width);
  for (int32_t index = 0; index < config.layers; index++) table.layer(index);
  table.vector("model.norm.weight", TensorRole::final_norm, -1, config.width);
  if (!config.tied_embeddings) {
    table.matrix("lm_head", TensorRole::lm_head, -1, config.vocabulary, config.width);
  }
  return table.take();
}

int64_t total_bytes(const std::vector<TensorSpec>& table) {
  int64_t bytes = 0;
  for (const TensorSpec& spec : table) bytes += spec.bytes();
  return bytes;
}

}  // namespace exact
