// small_models.h owns configs of a few hundred kilobytes of weights, one for each kind of tensor.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "engine/config.h"

namespace exact {

// `type`: llama, qwen2 or qwen3. llama has every bias there is.
inline std::string small_config_text(const std::string& type, bool tied) {
  return R"({"model_type": ")" + type + R"(", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
    "vocab_size": 128, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": )" +
         (tied ? "true" : "false") + R"(, "dtype": "bfloat16", "attention_bias": )" +
         (type == "llama" ? R"(true, "mlp_bias": true})" : "false}");
}

inline ModelConfig small_config(const std::string& type, bool tied) {
  auto config = parse_config(small_config_text(type, tied));
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  return config.is_ok() ? *config : ModelConfig{};
}

}  // namespace exact
