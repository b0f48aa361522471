// tensor_table.h owns the list of a model's tensors, each exactly once, in one fixed order.
// Loading, updating, digesting and making a model all walk this list.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/config.h"

namespace exact {

enum class TensorRole : uint8_t {
  embedding,
  final_norm,
  lm_head,
  input_norm,
  query,
  key,
  value,
  query_bias,
  key_bias,
  value_bias,
  query_norm,
  key_norm,
  output,
  output_bias,
  post_norm,
  gate,
  up,
  down,
  gate_bias,
  up_bias,
  down_bias,
};

struct TensorSpec {
  std::string name;  // Hugging Face: "model.layers.0.self_attn.q_proj.weight"
  TensorRole role{};
  int32_t layer = -1;  // -1 outside the layers
  int64_t rows = 1;    // a vector is one row
  int64_t columns = 0;
  bool is_vector = false;  // shape in files: [columns], else [rows, columns]
  int64_t bytes() const { return rows * columns * 2; }  // bf16
};

// Embedding, layers in order, final norm, lm_head (absent when tied).
std::vector<TensorSpec> tensor_table(const ModelConfig& config);
int64_t total_bytes(const std::vector<TensorSpec>& table);

}  // namespace exact
