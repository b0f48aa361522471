// Rule N11: the contract id stands for the rules and for every number of the config.
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <vector>

#include "engine/config.h"

namespace exact {
namespace {

ModelConfig llama() {
  auto config = load_config(EXACT_GOLDEN_DIR "/llama-d64");
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  return config.is_ok() ? *config : ModelConfig{};
}

TEST(ContractId, ChangesWithEveryNumberOfTheConfig) {
  const ModelConfig base = llama();
  const std::vector<std::function<void(ModelConfig&)>> changes = {
      [](ModelConfig&) {},
      [](ModelConfig& c) { c.type = ModelType::qwen3; },
      [](ModelConfig& c) { c.width++; },
      [](ModelConfig& c) { c.layers++; },
      [](ModelConfig& c) { c.query_heads++; },
      [](ModelConfig& c) { c.kv_heads++; },
      [](ModelConfig& c) { c.head_width++; },
      [](ModelConfig& c) { c.feed_forward_width++; },
      [](ModelConfig& c) { c.vocabulary++; },
      [](ModelConfig& c) { c.max_positions++; },
      [](ModelConfig& c) { c.norm_epsilon *= 1.0000002f; },
      [](ModelConfig& c) { c.tied_embeddings = !c.tied_embeddings; },
      [](ModelConfig& c) { c.qkv_bias = !c.qkv_bias; },
      [](ModelConfig& c) { c.output_bias = !c.output_bias; },
      [](ModelConfig& c) { c.mlp_bias = !c.mlp_bias; },
      [](ModelConfig& c) { c.head_norm = !c.head_norm; },
      [](ModelConfig& c) { c.norm_form = NormForm::fused; },
      [](ModelConfig& c) { c.rope.theta += 1e-9; },
      [](ModelConfig& c) { c.rope.kind = RopeKind::standard; },
      [](ModelConfig& c) { c.rope.factor += 1e-9; },
      [](ModelConfig& c) { c.rope.low_frequency_factor += 1e-9; },
      [](ModelConfig& c) { c.rope.high_frequency_factor += 1e-9; },
      [](ModelConfig& c) { c.rope.original_max_positions++; },
  };
  std::set<Digest128> ids;
  for (const auto& change : changes) {
    ModelConfig config = base;
    change(config);
    ids.insert(contract_id(config));
  }
  EXPECT_EQ(ids.size(), changes.size());
}

TEST(ContractId, DoesNotReadWhatHasNoMeaning) {
  ModelConfig config = llama();
  config.rope.kind = RopeKind::standard;
  const Digest128 id = contract_id(config);
  config.rope.factor = 7;  // of llama3 alone
  EXPECT_EQ(contract_id(config), id);
}

}  // namespace
}  // namespace exact
