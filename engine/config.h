// config.h owns ModelConfig: what a Hugging Face config.json says of a dense llama, qwen2 or qwen3
// model, checked against the contract. Anything else is refused by name; no field is guessed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/digest.h"
#include "kernels/contract/rope.h"

namespace exact {

enum class ModelType : uint8_t { llama, qwen2, qwen3 };
std::string_view model_type_name(ModelType type);  // as in config.json

struct ModelConfig {
  ModelType type = ModelType::llama;
  int32_t width = 0;               // D  hidden_size
  int32_t layers = 0;              // L  num_hidden_layers
  int32_t query_heads = 0;         // H  num_attention_heads
  int32_t kv_heads = 0;            // G  num_key_value_heads
  int32_t head_width = 0;          // E  head_dim, or hidden_size / num_attention_heads
  int32_t feed_forward_width = 0;  // F  intermediate_size
  int32_t vocabulary = 0;          // V  vocab_size
  int32_t max_positions = 0;       //    max_position_embeddings
  float norm_epsilon = 0;          //    rms_norm_eps
  bool tied_embeddings = false;    //    tie_word_embeddings
  bool qkv_bias = false;           //    qwen2, or attention_bias
  bool output_bias = false;        //    attention_bias of llama and qwen3: o_proj has one too
  bool mlp_bias = false;           //    llama's mlp_bias
  bool head_norm = false;          //    qwen3's q_norm and k_norm
  NormForm norm_form = NormForm::hf;
  RopeConfig rope;
  std::vector<int32_t> eos_ids;  // eos_token_id: a sample ends with one of these
};

// The text of a config.json. invalid: not JSON, or a field is missing or of the wrong type;
// unsupported: a model or value outside the contract. The message names the field.
Result<ModelConfig> parse_config(std::string_view json_text);
Result<ModelConfig> load_config(const std::string& model_directory);

// Rule N11: the rules' version, the forms in force and the config's every number.
Digest128 contract_id(const ModelConfig& config);

}  // namespace exact
