// What a config's rope object may say: each kind is read in full, and what transformers would not
// read as written is refused by its field's name.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/config.h"
#include "tests/engine/small_models.h"

namespace exact {
namespace {

using Json = nlohmann::json;

const Json kErased(Json::value_t::discarded);

Json rope_config(const Json& rope) {
  Json config = Json::parse(small_config_text("qwen3", true));
  config["rope_parameters"] = rope;
  return config;
}

ModelConfig parse(const Json& json) {
  auto config = parse_config(json.dump());
  EXPECT_TRUE(config.is_ok()) << config.status().to_string() << "\n" << json.dump(1);
  return config.is_ok() ? *config : ModelConfig{};
}

TEST(ConfigRope, YarnIsReadInFullAndMayLeaveItsDefaultsOut) {
  const ModelConfig brief = parse(rope_config({{"rope_type", "yarn"},
                                               {"rope_theta", 1e6},
                                               {"factor", 4.0},
                                               {"original_max_position_embeddings", 32768}}));
  EXPECT_EQ(brief.rope.kind, RopeKind::yarn);
  EXPECT_EQ(brief.rope.factor, 4.0);
  EXPECT_EQ(brief.rope.original_max_positions, 32768);
  EXPECT_EQ(brief.rope.beta_fast, 32.0);
  EXPECT_EQ(brief.rope.beta_slow, 1.0);
  EXPECT_TRUE(brief.rope.truncate);
  EXPECT_FALSE(brief.rope.attention_factor || brief.rope.ramp_on_host);
  const ModelConfig full = parse(rope_config({{"rope_type", "yarn"},
                                              {"rope_theta", 1e6},
                                              {"factor", 8},
                                              {"beta_fast", 16},
                                              {"beta_slow", 2},
                                              {"truncate", false},
                                              {"attention_factor", 1.5},
                                              {"mscale", 0.7},
                                              {"mscale_all_dim", 0.9},
                                              {"partial_rotary_factor", 1.0}}));
  EXPECT_EQ(full.rope.factor, 8.0);
  EXPECT_EQ(full.rope.original_max_positions, 512);  // max_position_embeddings
  EXPECT_EQ(full.rope.beta_fast, 16.0);
  EXPECT_EQ(full.rope.beta_slow, 2.0);
  EXPECT_FALSE(full.rope.truncate);
  EXPECT_EQ(full.rope.attention_factor, 1.5);
  EXPECT_EQ(full.rope.mscale, 0.7);
  EXPECT_EQ(full.rope.mscale_all_dim, 0.9);
}

TEST(ConfigRope, LinearNeedsAFactorAlone) {
  const ModelConfig config =
      parse(rope_config({{"rope_type", "linear"}, {"rope_theta", 10000}, {"factor", 2.0}}));
  EXPECT_EQ(config.rope.kind, RopeKind::linear);
  EXPECT_EQ(config.rope.factor, 2.0);
}

TEST(ConfigRope, AFieldOfAnotherKindOfRopeIsPassedOverAsTransformersDoes) {
  const Json plain = {{"rope_type", "default"}, {"rope_theta", 10000}};
  Json more = plain;
  more["factor"] = 4;
  more["beta_fast"] = 8;
  more["mrope_section"] = nullptr;
  EXPECT_EQ(contract_id(parse(rope_config(plain))), contract_id(parse(rope_config(more))));
}

TEST(ConfigRope, TheOriginalLengthMayStandOutsideTheRopesObject) {
  const Json inside = rope_config({{"rope_type", "yarn"},
                                   {"rope_theta", 1e6},
                                   {"factor", 4},
                                   {"original_max_position_embeddings", 128}});
  Json config = inside;
  config["original_max_position_embeddings"] = 128;
  EXPECT_EQ(contract_id(parse(config)), contract_id(parse(inside)));
  config["rope_parameters"].erase("original_max_position_embeddings");
  EXPECT_EQ(contract_id(parse(config)), contract_id(parse(inside)));
}

struct BadRope {
  const char* type;
  const char* field;
  Json value;  // discarded: the field is erased
};

TEST(ConfigRope, EachWrongFieldOfYarnAndLinearIsRefusedByName) {
  const std::vector<BadRope> cases = {
      {"linear", "factor", kErased},
      {"linear", "factor", 0.5},
      {"linear", "factor", "2"},
      {"yarn", "factor", kErased},
      {"yarn", "factor", nullptr},
      {"yarn", "beta_fast", 0},
      {"yarn", "beta_fast", 0.5},
      {"yarn", "beta_slow", -1},
      {"yarn", "truncate", nullptr},
      {"yarn", "truncate", 1},
      {"yarn", "attention_factor", 0},
      {"yarn", "attention_factor", "1"},
      {"yarn", "mscale", -1},
      {"yarn", "mscale_all_dim", true},
      {"yarn", "extrapolation_factor", 1},
      {"yarn", "original_max_position_embeddings", 0},
  };
  for (const BadRope& bad : cases) {
    Json json = rope_config({{"rope_type", bad.type}, {"rope_theta", 1e6}, {"factor", 4}});
    if (bad.value.is_discarded()) {
      json["rope_parameters"].erase(bad.field);
    } else {
      json["rope_parameters"][bad.field] = bad.value;
    }
    const auto config = parse_config(json.dump());
    ASSERT_FALSE(config.is_ok()) << json.dump();
    EXPECT_NE(config.status().message().find(std::string("rope_parameters.") + bad.field + "'"),
              std::string::npos)
        << config.status().message();
  }
}

TEST(ConfigRope, DynamicRopeIsRefusedWithItsReason) {
  const auto config = parse_config(
      rope_config({{"rope_type", "dynamic"}, {"rope_theta", 1e6}, {"factor", 4}}).dump());
  ASSERT_FALSE(config.is_ok());
  EXPECT_NE(config.status().message().find("longest sequence in the trainer's batch"),
            std::string::npos)
      << config.status().message();
}

}  // namespace
}  // namespace exact
