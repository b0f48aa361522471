// What a config.json may say: the goldens' configs give the right numbers, both spellings of
// transformers agree, and whatever is outside the contract is refused by its field's name.
#include "engine/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/temporary_directory.h"

namespace exact {
namespace {

using Json = nlohmann::json;

Json base_config(const char* type = "llama") {
  Json config = Json::parse(R"({
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "hidden_act": "silu",
    "tie_word_embeddings": true, "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}})");
  config["model_type"] = type;
  return config;
}

Json rope_config(const Json& rope) {
  Json config = base_config("qwen3");
  config["rope_parameters"] = rope;
  return config;
}

ModelConfig parse(const Json& json) {
  auto config = parse_config(json.dump());
  EXPECT_TRUE(config.is_ok()) << config.status().to_string() << "\n" << json.dump(1);
  return config.is_ok() ? *config : ModelConfig{};
}

ModelConfig golden(const char* name) {
  auto config = load_config(std::string(EXACT_GOLDEN_DIR) + "/" + name);
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  return config.is_ok() ? *config : ModelConfig{};
}

TEST(Config, LlamaGoldenIsReadInFull) {
  const ModelConfig config = golden("llama-d64");
  EXPECT_EQ(config.type, ModelType::llama);
  EXPECT_EQ(config.width, 512);
  EXPECT_EQ(config.layers, 3);
  EXPECT_EQ(config.query_heads, 8);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.head_width, 64);
  EXPECT_EQ(config.feed_forward_width, 1408);
  EXPECT_EQ(config.vocabulary, 4096);
  EXPECT_EQ(config.max_positions, 131072);
  EXPECT_EQ(config.norm_epsilon, 1e-5f);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias || config.output_bias || config.mlp_bias || config.head_norm);
  EXPECT_EQ(config.norm_form, NormForm::hf);
  EXPECT_EQ(config.rope.kind, RopeKind::llama3);
  EXPECT_EQ(config.rope.head_width, 64);
  EXPECT_EQ(config.rope.theta, 500000.0);
  EXPECT_EQ(config.rope.factor, 32.0);
  EXPECT_EQ(config.rope.low_frequency_factor, 1.0);
  EXPECT_EQ(config.rope.high_frequency_factor, 4.0);
  EXPECT_EQ(config.rope.original_max_positions, 8192);
}

TEST(Config, Qwen2GoldenHasBiasesAndAQuotientForItsHeadWidth) {
  const ModelConfig config = golden("qwen2-d64");
  EXPECT_EQ(config.type, ModelType::qwen2);
  EXPECT_EQ(config.width, 896);
  EXPECT_EQ(config.query_heads, 14);
  EXPECT_EQ(config.head_width, 64);  // the file has no head_dim
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_FALSE(config.output_bias);
  EXPECT_FALSE(config.head_norm);
  EXPECT_EQ(config.rope.kind, RopeKind::standard);
  EXPECT_EQ(config.rope.theta, 1000000.0);
}

TEST(Config, Qwen3GoldensHaveHeadNorms) {
  const ModelConfig wide = golden("qwen3-d128");
  EXPECT_EQ(wide.type, ModelType::qwen3);
  EXPECT_EQ(wide.head_width, 128);  // not hidden_size / num_attention_heads, which is 64
  EXPECT_EQ(wide.width, 512);
  EXPECT_FALSE(wide.tied_embeddings);
  EXPECT_TRUE(wide.head_norm);
  EXPECT_FALSE(wide.qkv_bias || wide.output_bias);
  const ModelConfig narrow = golden("qwen3-d64");
  EXPECT_EQ(narrow.head_width, 64);
  EXPECT_EQ(narrow.vocabulary, 1024);
  EXPECT_TRUE(narrow.tied_embeddings);
  EXPECT_EQ(narrow.norm_epsilon, 1e-6f);
}

// The same model as transformers 4 writes it.
Json version_4(Json config) {
  Json rope = config["rope_parameters"];
  config.erase("rope_parameters");
  config["rope_theta"] = rope["rope_theta"];
  rope.erase("rope_theta");
  config["rope_scaling"] = rope["rope_type"] == "default" ? Json() : rope;
  config["torch_dtype"] = config["dtype"];
  config.erase("dtype");
  return config;
}

TEST(Config, BothSpellingsOfTransformersAreTheSameModel) {
  Json plain = base_config("qwen3");
  plain["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1000000}};
  const Json yarn = rope_config({{"rope_type", "yarn"},
                                 {"rope_theta", 1e6},
                                 {"factor", 4.0},
                                 {"original_max_position_embeddings", 32768}});
  const Json linear =
      rope_config({{"rope_type", "linear"}, {"rope_theta", 10000}, {"factor", 2.0}});
  for (const Json& config : {base_config(), plain, yarn, linear}) {
    EXPECT_EQ(contract_id(parse(config)), contract_id(parse(version_4(config))));
  }
  Json old_key = version_4(base_config());
  old_key["rope_scaling"]["type"] = old_key["rope_scaling"]["rope_type"];
  old_key["rope_scaling"].erase("rope_type");
  EXPECT_EQ(parse(old_key).rope.kind, RopeKind::llama3);
}

TEST(Config, WhatAClassDefaultsToMayBeMissing) {
  Json config = base_config();
  for (const char* name : {"dtype", "hidden_act", "tie_word_embeddings", "num_key_value_heads"}) {
    config.erase(name);
  }
  config["head_dim"] = nullptr;
  config["sliding_window"] = 4096;  // without use_sliding_window it means nothing
  const ModelConfig parsed = parse(config);
  EXPECT_EQ(parsed.kv_heads, 8);
  EXPECT_EQ(parsed.head_width, 64);
  EXPECT_FALSE(parsed.tied_embeddings);
}

TEST(Config, AttentionBiasReachesTheOutputInLlamaAndQwen3Alone) {
  for (const char* type : {"llama", "qwen3"}) {
    Json config = base_config(type);
    config["attention_bias"] = true;
    EXPECT_TRUE(parse(config).qkv_bias && parse(config).output_bias) << type;
    EXPECT_FALSE(parse(config).mlp_bias) << type;
  }
  EXPECT_TRUE(parse(base_config("qwen2")).qkv_bias);
  EXPECT_FALSE(parse(base_config("qwen2")).output_bias);
  Json config = base_config();
  config["mlp_bias"] = true;
  EXPECT_TRUE(parse(config).mlp_bias);
}

std::vector<int32_t> eos_of(const Json& field) {
  Json config = base_config();
  config["eos_token_id"] = field;
  return parse(config).eos_ids;
}

TEST(Config, TextsEndAtAnIdAtAListOfIdsOrNowhere) {
  EXPECT_EQ(parse(base_config()).eos_ids, std::vector<int32_t>{});
  EXPECT_EQ(eos_of(nullptr), std::vector<int32_t>{});
  EXPECT_EQ(eos_of(Json::array()), std::vector<int32_t>{});
  EXPECT_EQ(eos_of(0), std::vector<int32_t>{0});
  EXPECT_EQ(eos_of({4095, 7, 4095}), (std::vector<int32_t>{4095, 7}));
}

TEST(Config, WhereATextEndsIsNotInTheContract) {
  Json config = base_config();
  config["eos_token_id"] = 5;
  EXPECT_EQ(contract_id(parse(config)), contract_id(parse(base_config())));
}

TEST(Config, AGenerationConfigGoesBeforeTheConfigsEnd) {
  Json json = base_config();
  json["eos_token_id"] = 5;
  const auto eos_beside = [&](const std::string& text) {
    const TemporaryDirectory directory;
    directory.write("config.json", json.dump());
    if (!text.empty()) directory.write("generation_config.json", text);
    const auto config = load_config(directory.path());
    EXPECT_TRUE(config.is_ok()) << config.status().to_string();
    return config.is_ok() ? config->eos_ids : std::vector<int32_t>{-1};
  };
  EXPECT_EQ(eos_beside(""), std::vector<int32_t>{5});
  EXPECT_EQ(eos_beside("{}"), std::vector<int32_t>{5});
  EXPECT_EQ(eos_beside(R"({"eos_token_id": null, "top_k": 20})"), std::vector<int32_t>{5});
  EXPECT_EQ(eos_beside(R"({"eos_token_id": 9})"), std::vector<int32_t>{9});
  EXPECT_EQ(eos_beside(R"({"eos_token_id": [9, 8]})"), (std::vector<int32_t>{9, 8}));
  EXPECT_EQ(eos_beside(R"({"eos_token_id": []})"), std::vector<int32_t>{});
}

TEST(Config, ABadGenerationConfigIsRefusedByItsPath) {
  for (const char* text :
       {"", "[]", "{", R"({"eos_token_id": 4096})", R"({"eos_token_id": "</s>"})"}) {
    const TemporaryDirectory directory;
    directory.write("config.json", base_config().dump());
    directory.write("generation_config.json", text);
    const auto config = load_config(directory.path());
    ASSERT_FALSE(config.is_ok()) << text;
    EXPECT_EQ(config.status().code(), Code::invalid);
    EXPECT_NE(config.status().message().find("/generation_config.json"), std::string::npos);
  }
}

// Qwen2 and Qwen3 with a window of 4096 from layer `first` of 3 on.
Json window_config(int first) {
  Json config = base_config("qwen3");
  config["use_sliding_window"] = true;
  config["sliding_window"] = 4096;
  config["max_window_layers"] = first;
  return config;
}

TEST(Config, AWindowEndsTheContextOneBeforeItsLength) {
  for (const char* type : {"qwen2", "qwen3"}) {
    Json json = window_config(2);
    json["model_type"] = type;
    const ModelConfig config = parse(json);
    EXPECT_EQ(config.attention_window, 4096);
    EXPECT_EQ(config.max_positions, 131072);
    EXPECT_EQ(longest_context(config), 4095);
  }
  Json wide = window_config(0);
  wide["sliding_window"] = 1 << 20;
  EXPECT_EQ(longest_context(parse(wide)), 131072);
}

TEST(Config, AWindowThatNoLayerHasIsNone) {
  Json unused = window_config(0);
  unused["use_sliding_window"] = false;
  Json full = window_config(0);
  full["layer_types"] = {"full_attention", "full_attention", "full_attention"};
  for (const Json& config : {window_config(3), window_config(28), unused, full}) {
    EXPECT_EQ(parse(config).attention_window, 0);
    EXPECT_EQ(longest_context(parse(config)), 131072);
    EXPECT_EQ(contract_id(parse(config)), contract_id(parse(base_config("qwen3"))));
  }
}

TEST(Config, LayerTypesGoBeforeTheNumberOfLayersWithoutAWindow) {
  Json config = window_config(28);
  config["layer_types"] = {"full_attention", "full_attention", "sliding_attention"};
  EXPECT_EQ(parse(config).attention_window, 4096);
  config.erase("max_window_layers");
  EXPECT_EQ(parse(config).attention_window, 4096);
}

TEST(Config, AWindowMustHaveALength) {
  for (const Json& length : {Json(), Json(2), Json(-1), Json("4096"), Json(1 << 25)}) {
    Json json = window_config(0);
    json["sliding_window"] = length;
    const auto config = parse_config(json.dump());
    ASSERT_FALSE(config.is_ok()) << length;
    EXPECT_NE(config.status().message().find("'sliding_window'"), std::string::npos);
  }
}

// ---- refusals

struct BadConfig {
  const char* type;
  const char* field;  // JSON pointer
  Json value;         // discarded: the field is erased
  Code code;
  const char* named;  // what the message must say
};

const Json kErased(Json::value_t::discarded);

const std::vector<BadConfig>& bad_configs() {
  static const std::vector<BadConfig> kCases = {
      {"gemma", "/model_type", "gemma", Code::unsupported, "model_type"},
      {"llama", "/model_type", kErased, Code::invalid, "model_type"},
      {"llama", "/model_type", 3, Code::invalid, "model_type"},
      {"llama",
       "/architectures",
       {"LlamaForSequenceClassification"},
       Code::unsupported,
       "architectures"},
      {"llama", "/hidden_act", "gelu", Code::unsupported, "hidden_act"},
      {"llama", "/dtype", "float16", Code::unsupported, "dtype"},
      {"llama", "/torch_dtype", "float32", Code::unsupported, "torch_dtype"},
      {"llama", "/hidden_size", kErased, Code::invalid, "hidden_size"},
      {"llama", "/hidden_size", "512", Code::invalid, "hidden_size"},
      {"llama", "/hidden_size", 512.5, Code::invalid, "hidden_size"},
      {"llama", "/hidden_size", -512, Code::invalid, "hidden_size"},
      {"llama", "/hidden_size", int64_t{1} << 40, Code::invalid, "hidden_size"},
      {"llama", "/hidden_size", UINT64_MAX, Code::invalid, "hidden_size"},
      {"llama", "/hidden_size", 504, Code::unsupported, "hidden_size"},
      {"llama", "/intermediate_size", 1400, Code::unsupported, "intermediate_size"},
      {"llama", "/intermediate_size", 0, Code::invalid, "intermediate_size"},
      {"llama", "/num_hidden_layers", 0, Code::invalid, "num_hidden_layers"},
      {"llama", "/num_hidden_layers", 1000000, Code::invalid, "num_hidden_layers"},
      {"llama", "/num_attention_heads", true, Code::invalid, "num_attention_heads"},
      {"llama", "/num_key_value_heads", 3, Code::invalid, "num_key_value_heads"},
      {"llama", "/num_key_value_heads", 0, Code::invalid, "num_key_value_heads"},
      {"qwen2", "/num_key_value_heads", kErased, Code::invalid, "num_key_value_heads"},
      {"llama", "/head_dim", 63, Code::invalid, "head_dim"},
      {"llama", "/head_dim", 72, Code::unsupported, "head_dim"},
      {"qwen3", "/head_dim", kErased, Code::invalid, "head_dim"},
      {"llama", "/vocab_size", 5003, Code::unsupported, "vocab_size"},
      {"llama", "/vocab_size", 1 << 30, Code::invalid, "vocab_size"},
      {"llama", "/max_position_embeddings", kErased, Code::invalid, "max_position_embeddings"},
      {"llama", "/max_position_embeddings", 1 << 25, Code::invalid, "max_position_embeddings"},
      {"llama", "/eos_token_id", 4096, Code::invalid, "eos_token_id"},
      {"llama", "/eos_token_id", -1, Code::invalid, "eos_token_id"},
      {"llama", "/eos_token_id", UINT64_MAX, Code::invalid, "eos_token_id"},
      {"llama", "/eos_token_id", {1, 2.5}, Code::invalid, "eos_token_id"},
      {"llama", "/eos_token_id", {1, 4096}, Code::invalid, "eos_token_id"},
      {"llama", "/eos_token_id", true, Code::invalid, "eos_token_id"},
      {"llama", "/rms_norm_eps", kErased, Code::invalid, "rms_norm_eps"},
      {"llama", "/rms_norm_eps", 0, Code::invalid, "rms_norm_eps"},
      {"llama", "/rms_norm_eps", -1e-6, Code::invalid, "rms_norm_eps"},
      {"llama", "/tie_word_embeddings", 1, Code::invalid, "tie_word_embeddings"},
      {"llama", "/attention_bias", "no", Code::invalid, "attention_bias"},
      {"qwen2", "/mlp_bias", true, Code::unsupported, "mlp_bias"},
      {"llama", "/partial_rotary_factor", 0.5, Code::unsupported, "partial_rotary_factor"},
      {"llama", "/rope_parameters/partial_rotary_factor", 0.5, Code::unsupported,
       "rope_parameters.partial_rotary_factor"},
      {"llama", "/pretraining_tp", 2, Code::unsupported, "pretraining_tp"},
      {"llama", "/attention_dropout", 0.1, Code::unsupported, "attention_dropout"},
      {"llama", "/use_sliding_window", true, Code::unsupported, "use_sliding_window"},
      {"qwen2", "/use_sliding_window", "yes", Code::invalid, "use_sliding_window"},
      {"qwen2", "/use_sliding_window", true, Code::invalid, "max_window_layers"},
      {"qwen3",
       "/layer_types",
       {"full_attention", "sliding_attention", "full_attention"},
       Code::unsupported,
       "layer_types"},
      {"llama",
       "/layer_types",
       {"full_attention", "sliding_attention", "full_attention"},
       Code::unsupported,
       "layer_types"},
      {"qwen3",
       "/layer_types",
       {"full_attention", "chunked_attention", "full_attention"},
       Code::unsupported,
       "layer_types"},
      {"qwen3", "/layer_types", {"full_attention"}, Code::invalid, "layer_types"},
      {"llama",
       "/quantization_config",
       {{"quant_method", "fp8"}},
       Code::unsupported,
       "quantization_config"},
      {"llama", "/rope_parameters", "llama3", Code::invalid, "rope_parameters"},
      {"llama", "/rope_parameters", kErased, Code::invalid, "rope_theta"},
      {"llama", "/rope_parameters/rope_theta", kErased, Code::invalid, "rope_theta"},
      {"llama", "/rope_parameters/rope_theta", 0, Code::invalid, "rope_parameters.rope_theta"},
      {"llama", "/rope_parameters/rope_theta", "big", Code::invalid, "rope_parameters.rope_theta"},
      {"llama", "/rope_theta", 10000, Code::invalid, "rope_theta"},
      {"llama", "/rope_scaling", {{"type", "linear"}}, Code::invalid, "rope_scaling"},
      {"llama", "/rope_parameters/rope_type", "longrope", Code::unsupported, "rope_type"},
      {"llama", "/rope_parameters/rope_type", "dynamic", Code::unsupported, "rope_type"},
      {"llama", "/rope_parameters/mrope_section", {1, 2}, Code::unsupported, "mrope_section"},
      {"llama",
       "/rope_parameters/full_attention",
       {{"rope_type", "default"}},
       Code::unsupported,
       "rope_parameters.full_attention"},
      {"llama", "/original_max_position_embeddings", 4096, Code::invalid,
       "original_max_position_embeddings"},
      {"llama", "/rope_parameters/factor", kErased, Code::invalid, "rope_parameters.factor"},
      {"llama", "/rope_parameters/factor", 0.5, Code::invalid, "rope_parameters.factor"},
      {"llama", "/rope_parameters/high_freq_factor", 1, Code::invalid, "high_freq_factor"},
      {"llama", "/rope_parameters/low_freq_factor", kErased, Code::invalid, "low_freq_factor"},
      {"llama", "/rope_parameters/original_max_position_embeddings", kErased, Code::invalid,
       "original_max_position_embeddings"},
  };
  return kCases;
}

TEST(Config, EachUnsupportedFieldIsRefusedByName) {
  for (const BadConfig& bad : bad_configs()) {
    Json json = base_config(bad.type);
    const Json::json_pointer pointer(bad.field);
    if (bad.value.is_discarded()) {
      json.at(pointer.parent_pointer()).erase(pointer.back());
    } else {
      json[pointer] = bad.value;
    }
    const auto config = parse_config(json.dump());
    ASSERT_FALSE(config.is_ok()) << bad.field << " = " << json.dump();
    EXPECT_EQ(config.status().code(), bad.code) << config.status().to_string();
    EXPECT_NE(config.status().message().find(std::string(bad.named) + "'"), std::string::npos)
        << bad.field << ": " << config.status().message();
  }
}

TEST(Config, TextThatIsNotAJsonObjectIsInvalid) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("3"), std::string("null"),
        std::string("{\"a\": NaN}"), std::string("\xff\xfe"), std::string(100000, '['),
        base_config().dump() + "x"}) {
    const auto config = parse_config(text);
    ASSERT_FALSE(config.is_ok());
    EXPECT_EQ(config.status().code(), Code::invalid);
  }
}

TEST(Config, EveryTruncationIsRefused) {
  const std::string text = base_config().dump();
  for (size_t length = 0; length < text.size(); length++) {
    EXPECT_FALSE(parse_config(text.substr(0, length)).is_ok()) << length;
  }
}

TEST(Config, AMissingFileIsNotFoundByItsPath) {
  const auto config = load_config("/no/such/model");
  ASSERT_FALSE(config.is_ok());
  EXPECT_EQ(config.status().code(), Code::not_found);
  EXPECT_NE(config.status().message().find("/no/such/model/config.json"), std::string::npos);
}

}  // namespace
}  // namespace exact
