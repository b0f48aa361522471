// tiny_engine.h owns the model of two layers and the CPU backend that tests of one engine start
// from.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "engine/config.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact {

class TinyEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    auto config = parse_config(R"({
      "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
      "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 128,
      "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu",
      "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
      "tie_word_embeddings": true, "attention_bias": false, "dtype": "bfloat16"})");
    ASSERT_TRUE(config.is_ok()) << config.status().to_string();
    config_ = *config;
    auto backend = make_cpu_backend();
    ASSERT_TRUE(backend.is_ok());
    backend_ = std::move(backend).value();
  }

  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
};

}  // namespace exact
