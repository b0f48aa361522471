// Models from an integer hash: the names, shapes and values are those the goldens were made with,
// and what make_model writes is the same each time and loads as what it should be.
#include "engine/hash_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "engine/weights.h"
#include "kernels/contract/hash_init.h"
#include "tests/engine/memory_backend.h"
#include "tests/engine/small_models.h"
#include "tests/support/temporary_directory.h"

namespace exact {
namespace {

using Json = nlohmann::json;

constexpr const char* kGoldenModels[] = {"llama-d64", "qwen2-d64", "qwen3-d64", "qwen3-d128"};

std::string golden_path(const std::string& model, const std::string& file) {
  return std::string(EXACT_GOLDEN_DIR) + "/" + model + "/" + file;
}

Json golden_facts(const std::string& model) {
  std::ifstream file(golden_path(model, "config.json"));
  return Json::parse(file).at("_golden");
}

const TensorSpec& find_spec(const std::vector<TensorSpec>& table, const std::string& name) {
  const auto it = std::find_if(table.begin(), table.end(),
                               [&](const TensorSpec& spec) { return spec.name == name; });
  EXACT_CHECK(it != table.end(), "a tensor of the table");
  return *it;
}

std::vector<uint16_t> values_of(const TensorSpec& spec, const ModelConfig& config, uint64_t seed) {
  std::vector<uint16_t> values(static_cast<size_t>(spec.rows * spec.columns));
  hash_tensor(spec, config, seed, values);
  return values;
}

// ---- the goldens' own facts

TEST(HashModel, NamesAndShapesAreTheParametersOfPyTorch) {
  for (const char* model : kGoldenModels) {
    auto config = load_config(std::string(EXACT_GOLDEN_DIR) + "/" + model);
    ASSERT_TRUE(config.is_ok()) << config.status().to_string();
    const std::vector<TensorSpec> table = tensor_table(*config);
    const Json parameters = golden_facts(model).at("params");  // the first ones, in torch's order
    ASSERT_GE(parameters.size(), 10u);
    for (size_t i = 0; i < parameters.size(); i++) {
      std::string want = table[i].name + " [" + std::to_string(table[i].columns) + "]";
      if (!table[i].is_vector) {
        want.insert(want.rfind('[') + 1, std::to_string(table[i].rows) + ", ");
      }
      EXPECT_EQ(parameters[i].get<std::string>(), want) << model;
    }
  }
}

TEST(HashModel, TheHashGivesTheGoldensInputIds) {
  for (const char* model : kGoldenModels) {
    const uint64_t seed = golden_facts(model).at("seed");
    auto config = load_config(std::string(EXACT_GOLDEN_DIR) + "/" + model);
    auto file = SafetensorsFile::open(golden_path(model, "golden.safetensors"));
    ASSERT_TRUE(config.is_ok() && file.is_ok());
    const SafetensorsEntry* entry = file->find("input_ids");
    ASSERT_NE(entry, nullptr);
    std::vector<int32_t> ids(entry->bytes.size() / 4);
    std::memcpy(ids.data(), entry->bytes.data(), entry->bytes.size());
    const contract::HashStream stream("input_ids", seed);
    for (size_t j = 0; j < ids.size(); j++) {
      const auto vocabulary = static_cast<uint32_t>(config->vocabulary);
      ASSERT_EQ(static_cast<uint32_t>(ids[j]), stream.bits24(j) % vocabulary) << model << " " << j;
    }
  }
}

TEST(HashModel, TablesEndWithTheFinalNormAndAHeadWhereItIsNotTied) {
  for (const bool tied : {false, true}) {
    const auto table = tensor_table(small_config("llama", tied));
    EXPECT_EQ(table.front().role, TensorRole::embedding);
    EXPECT_EQ(table.back().name, tied ? "model.norm.weight" : "lm_head.weight");
    int64_t bytes = 0;
    for (const TensorSpec& spec : table) bytes += spec.bytes();
    EXPECT_EQ(total_bytes(table), bytes);
  }
  EXPECT_EQ(tensor_table(small_config("llama", false)).size(), 3u + 2 * 16);
  EXPECT_EQ(tensor_table(small_config("qwen2", false)).size(), 3u + 2 * 12);
  EXPECT_EQ(tensor_table(small_config("qwen3", false)).size(), 3u + 2 * 11);
}

// ---- values

struct Pinned {
  const char* type;
  bool tied;
  const char* name;
  std::vector<uint16_t> values;  // the first four of seed 11, by the formula in integer arithmetic
};

TEST(HashModel, FirstValuesOfEachKindOfTensor) {
  const std::vector<Pinned> cases = {
      {"llama", false, "model.norm.weight", {0x3f86, 0x3f4d, 0x3f8c, 0x3f7d}},
      {"llama", false, "model.layers.0.self_attn.q_proj.bias", {0xbefd, 0xbda3, 0x3ea4, 0x3e31}},
      {"llama", false, "model.layers.1.mlp.up_proj.weight", {0xbd0e, 0xbdd1, 0xbda5, 0x3e4f}},
      {"llama", false, "model.layers.1.mlp.down_proj.weight", {0xbe02, 0xbe03, 0xbe2e, 0x3e0f}},
      {"llama", false, "lm_head.weight", {0x3e02, 0xbd70, 0xbd9a, 0x3d00}},
      {"qwen3", false, "model.embed_tokens.weight", {0xbf2c, 0xbe9d, 0xbf44, 0x3d39}},
      {"qwen3", true, "model.embed_tokens.weight", {0xbe15, 0xbd88, 0xbe29, 0x3c20}},
  };
  for (const Pinned& pinned : cases) {
    const ModelConfig config = small_config(pinned.type, pinned.tied);
    const auto table = tensor_table(config);
    auto values = values_of(find_spec(table, pinned.name), config, 11);
    values.resize(4);
    EXPECT_EQ(values, pinned.values) << pinned.name;
  }
}

TEST(HashModel, EveryValueLiesInItsRange) {
  const ModelConfig config = small_config("qwen3", true);
  for (const TensorSpec& spec : tensor_table(config)) {
    const bool is_norm = spec.is_vector;  // this model has no biases
    const double bound = std::sqrt(3.0 / static_cast<double>(spec.columns));
    const float low = round_to_bf16(static_cast<float>(is_norm ? 0.75 : -bound));
    const float high = round_to_bf16(static_cast<float>(is_norm ? 1.25 : bound));
    for (const uint16_t value : values_of(spec, config, 3)) {
      ASSERT_GE(bf16_to_float(value), low) << spec.name;
      ASSERT_LE(bf16_to_float(value), high) << spec.name;
    }
  }
}

TEST(HashModel, ManyThreadsFillATensorLikeOne) {
  ModelConfig config = small_config("llama", false);
  TensorSpec spec{"model.layers.0.mlp.up_proj.weight", TensorRole::up, 0, 4099, 512, false};
  const auto values = values_of(spec, config, 5);
  const contract::HashStream stream(spec.name, 5);
  const double bound = std::sqrt(3.0 / 512);
  for (size_t i = 0; i < values.size(); i++) {
    ASSERT_EQ(values[i], stream.uniform_bf16(i, -bound, bound)) << "index " << i;
  }
}

TEST(HashModel, SeedsAndNamesGiveOtherValues) {
  const ModelConfig config = small_config("llama", false);
  const auto table = tensor_table(config);
  const TensorSpec gate = find_spec(table, "model.layers.0.mlp.gate_proj.weight");
  const TensorSpec up = find_spec(table, "model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(values_of(gate, config, 1), values_of(gate, config, 1));
  EXPECT_NE(values_of(gate, config, 1), values_of(gate, config, 2));
  EXPECT_NE(values_of(gate, config, 1), values_of(up, config, 1));
}

// ---- directories

class MakeModelTest : public testing::Test {
 protected:
  MakeModelTest() { config_path_ = home_.write("input.json", config_text_); }

  std::string out(const std::string& name) { return home_.file(name); }
  Status make(const std::string& name, HashModelOptions options = {}) {
    return make_model(config_path_, out(name), options);
  }
  std::map<std::string, std::string> contents(const std::string& name) {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(out(name))) {
      const std::string file = entry.path().filename().string();
      files[file] = home_.read(name + "/" + file);
    }
    return files;
  }
  // Digest of what lies in the directory, by the road of any checkpoint.
  Digest128 loaded_digest(const std::string& name) {
    auto config = load_config(out(name));
    EXPECT_TRUE(config.is_ok()) << config.status().to_string();
    WeightSlot slot(*config, backend_);
    const Status loaded = load_weights(out(name), slot);
    EXPECT_TRUE(loaded.is_ok()) << loaded.to_string();
    return loaded.is_ok() ? slot.digest() : Digest128{};
  }
  Digest128 hashed_digest(uint64_t seed) {
    const ModelConfig config = small_config("llama", false);
    WeightSlot slot(config, backend_);
    for (size_t i = 0; i < slot.table().size(); i++) {
      const auto values = values_of(slot.table()[i], config, seed);
      EXPECT_TRUE(slot.append(i, std::as_bytes(std::span(values))).is_ok());
    }
    return slot.digest();
  }

  TemporaryDirectory home_;
  MemoryBackend backend_;
  std::string config_text_ = small_config_text("llama", false);
  std::string config_path_;
};

TEST_F(MakeModelTest, AMadeModelLoadsAsItsHash) {
  const Status made = make("model", {.seed = 9});
  ASSERT_TRUE(made.is_ok()) << made.to_string();
  EXPECT_EQ(loaded_digest("model"), hashed_digest(9));
  EXPECT_EQ(home_.read("model/config.json"), config_text_);
  ASSERT_TRUE(make("other", {.seed = 10}).is_ok());
  EXPECT_EQ(loaded_digest("other"), hashed_digest(10));
  EXPECT_NE(loaded_digest("other"), loaded_digest("model"));
}

TEST_F(MakeModelTest, ShardsAreTheSameModel) {
  ASSERT_TRUE(make("one").is_ok());
  ASSERT_TRUE(make("many", {.max_shard_bytes = 40'000}).is_ok());
  EXPECT_EQ(loaded_digest("many"), loaded_digest("one"));
  const Json index = Json::parse(home_.read("many/model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"],
            total_bytes(tensor_table(small_config("llama", false))));
  std::set<std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) files.insert(file);
  EXPECT_GE(files.size(), 4u);
  for (const std::string& file : files) {
    EXPECT_LE(std::filesystem::file_size(out("many") + "/" + file), 40'000u + 4096) << file;
  }
  EXPECT_FALSE(std::filesystem::exists(out("many") + "/model.safetensors"));
}

TEST_F(MakeModelTest, ATensorLargerThanAShardHasOneForItself) {
  ASSERT_TRUE(make("tiny", {.max_shard_bytes = 1}).is_ok());
  EXPECT_EQ(loaded_digest("tiny"), hashed_digest(0));
}

TEST_F(MakeModelTest, TheSameArgumentsGiveTheSameBytes) {
  for (const int64_t shard : {int64_t{1} << 30, int64_t{40'000}}) {
    const std::string a = "a" + std::to_string(shard), b = "b" + std::to_string(shard);
    ASSERT_TRUE(make(a, {.seed = 4, .max_shard_bytes = shard}).is_ok());
    ASSERT_TRUE(make(b, {.seed = 4, .max_shard_bytes = shard}).is_ok());
    EXPECT_EQ(contents(a), contents(b));
    const auto before = contents(a);
    const Status again = make(a, {.seed = 4, .max_shard_bytes = shard});  // over its own output
    EXPECT_TRUE(again.is_ok()) << again.to_string();
    EXPECT_EQ(contents(a), before);
  }
}

TEST_F(MakeModelTest, ARunThatWasCutShortIsFinishedByTheNext) {
  ASSERT_TRUE(make("model").is_ok());
  const auto whole = contents("model");
  std::filesystem::remove(out("model") + "/config.json");
  std::filesystem::resize_file(out("model") + "/model.safetensors", 1000);
  home_.write("model/model.safetensors.tmp", "half");
  ASSERT_TRUE(make("model").is_ok());
  EXPECT_EQ(contents("model"), whole);
}

TEST_F(MakeModelTest, AnotherModelIsNeverOverwritten) {
  ASSERT_TRUE(make("model", {.seed = 1}).is_ok());
  const auto before = contents("model");
  const Status other_seed = make("model", {.seed = 2});
  EXPECT_EQ(other_seed.code(), Code::invalid);
  EXPECT_NE(other_seed.message().find("another config, seed"), std::string::npos)
      << other_seed.to_string();
  EXPECT_EQ(make("model", {.seed = 1, .max_shard_bytes = 40'000}).code(), Code::invalid);
  home_.write("input.json", small_config_text("llama", true));
  EXPECT_EQ(make("model", {.seed = 1}).code(), Code::invalid);
  EXPECT_EQ(contents("model"), before);
}

TEST_F(MakeModelTest, ADirectoryOfSomebodyElseIsNeverTouched) {
  std::filesystem::create_directory(out("mine"));
  home_.write("mine/model.safetensors", "precious");
  const Status status = make("mine");
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_NE(status.message().find(out("mine")), std::string::npos) << status.to_string();
  EXPECT_EQ(contents("mine"),
            (std::map<std::string, std::string>{{"model.safetensors", "precious"}}));
}

TEST_F(MakeModelTest, BadInputsLeaveNothingBehind) {
  EXPECT_EQ(make_model(home_.file("absent.json"), out("m"), {}).code(), Code::not_found);
  const std::string bad = home_.write("bad.json", R"({"model_type": "gemma"})");
  const Status refused = make_model(bad, out("m"), {});
  EXPECT_EQ(refused.code(), Code::unsupported);
  EXPECT_NE(refused.message().find("bad.json"), std::string::npos) << refused.to_string();
  EXPECT_EQ(make("m", {.max_shard_bytes = 0}).code(), Code::invalid);
  EXPECT_FALSE(std::filesystem::exists(out("m")));
  EXPECT_EQ(make("input.json").code(), Code::device);  // a file where a directory belongs
}

TEST_F(MakeModelTest, ProgressRisesToTheTotal) {
  std::vector<int64_t> done;
  HashModelOptions options;
  const auto table = tensor_table(small_config("llama", false));
  options.progress = [&](int64_t bytes_done, int64_t bytes_total) {
    EXPECT_EQ(bytes_total, total_bytes(table));
    done.push_back(bytes_done);
  };
  ASSERT_TRUE(make("model", options).is_ok());
  EXPECT_EQ(done.size(), table.size());
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), total_bytes(table));
}

}  // namespace
}  // namespace exact
