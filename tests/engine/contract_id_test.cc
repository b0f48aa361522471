// Rule N11: the contract id stands for the rules and for every number of the config.
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/config.h"

namespace exact {
namespace {

ModelConfig llama() {
  auto config = load_config(EXACT_GOLDEN_DIR "/llama-d64");
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  return config.is_ok() ? *config : ModelConfig{};
}

using Changes = std::vector<std::function<void(ModelConfig&)>>;

size_t distinct_ids(const ModelConfig& base, const Changes& changes) {
  std::set<Digest128> ids;
  for (const auto& change : changes) {
    ModelConfig config = base;
    change(config);
    ids.insert(contract_id(config));
  }
  return ids.size();
}

TEST(ContractId, ChangesWithEveryNumberOfTheConfig) {
  const ModelConfig base = llama();
  const Changes changes = {
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
      [](ModelConfig& c) { c.attention_window = 4096; },
      [](ModelConfig& c) { c.attention_window = 4097; },
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
  EXPECT_EQ(distinct_ids(base, changes), changes.size());
}

// Records and peers hold these: an accepted config keeps its id while its bits stay the same.
TEST(ContractId, OfTheGoldensIsAsItWas) {
  const std::vector<std::pair<std::string, std::string>> ids = {
      {"/llama-d64", "969e7f73f9e21991164fc64ddc7b958e"},
      {"/qwen2-d64", "f3ffb44a429e32852a41bcdfa9022fff"},
      {"/qwen3-d64", "6a93ad256b5ae2df0a561c3b24828c26"},
      {"/qwen3-d128", "4717dbd6f854fcfce91d84f46da807c7"},
  };
  for (const auto& [name, id] : ids) {
    const auto config = load_config(EXACT_GOLDEN_DIR + name);
    ASSERT_TRUE(config.is_ok()) << config.status().to_string();
    EXPECT_EQ(contract_id(*config).to_hex(), id) << name;
  }
}

TEST(ContractId, ChangesWithEveryNumberOfYarnAndLinear) {
  ModelConfig base = llama();
  base.rope.kind = RopeKind::yarn;
  base.rope.factor = 4;
  const Changes changes = {
      [](ModelConfig&) {},
      [](ModelConfig& c) { c.rope.kind = RopeKind::linear; },
      [](ModelConfig& c) { c.rope.kind = RopeKind::standard; },
      [](ModelConfig& c) { c.rope.kind = RopeKind::llama3; },
      [](ModelConfig& c) { c.rope.factor += 1e-9; },
      [](ModelConfig& c) { c.rope.original_max_positions++; },
      [](ModelConfig& c) { c.rope.beta_fast += 1e-9; },
      [](ModelConfig& c) { c.rope.beta_slow += 1e-9; },
      [](ModelConfig& c) { c.rope.truncate = false; },
      [](ModelConfig& c) { c.rope.attention_factor = 1.0; },
      [](ModelConfig& c) {
        c.rope.mscale = 0.9;
        c.rope.mscale_all_dim = 0.7;
      },
      [](ModelConfig& c) { c.rope.ramp_on_host = true; },
  };
  EXPECT_EQ(distinct_ids(base, changes), changes.size());
  base.rope.kind = RopeKind::linear;
  EXPECT_EQ(distinct_ids(base, {changes.begin(), changes.begin() + 5}), 4u);  // linear is linear
}

// Two ways to say one scale have the same bits, so the same id.
TEST(ContractId, OfYarnHoldsTheScaleAndNotItsSpelling) {
  ModelConfig config = llama();
  config.rope.kind = RopeKind::yarn;
  config.rope.factor = 1;
  const Digest128 id = contract_id(config);
  config.rope.attention_factor = 1.0;
  EXPECT_EQ(contract_id(config), id);
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
