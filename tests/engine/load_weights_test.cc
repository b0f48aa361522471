// Reading a Hugging Face directory: one file or many give the same model; whatever is missing,
// wrong, doubled or left over is refused by the names of its file and tensor.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/hash_model.h"
#include "engine/safetensors.h"
#include "engine/weights.h"
#include "tests/engine/memory_backend.h"
#include "tests/engine/small_models.h"
#include "tests/support/temporary_directory.h"

namespace exact {
namespace {

using Json = nlohmann::json;

// A tensor as a test may spoil it.
struct Loose {
  std::string dtype = "BF16";
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};
using LooseModel = std::map<std::string, Loose>;

LooseModel loose_model(const ModelConfig& config) {
  LooseModel model;
  for (const TensorSpec& spec : tensor_table(config)) {
    std::vector<uint16_t> values(static_cast<size_t>(spec.rows * spec.columns));
    hash_tensor(spec, config, 1, values);
    const auto bytes = std::as_bytes(std::span(values));
    Loose& tensor = model[spec.name];
    tensor.bytes.assign(bytes.begin(), bytes.end());
    tensor.shape = {spec.columns};
    if (!spec.is_vector) tensor.shape.insert(tensor.shape.begin(), spec.rows);
  }
  return model;
}

void write_file(const std::string& path, const LooseModel& model) {
  std::vector<SafetensorsOutput> outputs;
  for (const auto& [name, tensor] : model) {
    outputs.push_back({name, tensor.dtype, tensor.shape, tensor.bytes});
  }
  const Status written = write_safetensors(path, outputs);
  ASSERT_TRUE(written.is_ok()) << written.to_string();
}

class LoadWeightsTest : public testing::Test {
 protected:
  Status load(WeightSlot& slot) { return load_weights(directory_.path(), slot); }
  Status load_fresh() {
    WeightSlot slot(config_, backend_);
    return load(slot);
  }
  void write_single(const LooseModel& model) {
    write_file(directory_.file("model.safetensors"), model);
  }
  // Tensors dealt to three files in turn, and their index.
  Json write_shards(const LooseModel& model) {
    std::map<std::string, LooseModel> shards;
    Json index;
    size_t count = 0;
    for (const auto& [name, tensor] : model) {
      const std::string file = "part-" + std::to_string(count++ % 3) + ".safetensors";
      shards[file][name] = tensor;
      index["weight_map"][name] = file;
    }
    for (const auto& [file, part] : shards) write_file(directory_.file(file), part);
    write_index(index);
    return index;
  }
  void write_index(const Json& index) {
    directory_.write("model.safetensors.index.json", index.dump());
  }

  ModelConfig config_ = small_config("qwen3", true);
  LooseModel model_ = loose_model(config_);
  MemoryBackend backend_;
  TemporaryDirectory directory_;
};

void expect_error(const Status& status, Code code, const std::vector<std::string>& named) {
  EXPECT_EQ(status.code(), code) << status.to_string();
  for (const std::string& name : named) {
    EXPECT_NE(status.message().find(name), std::string::npos) << name << " in " << status.message();
  }
}

TEST_F(LoadWeightsTest, ShardsAndASingleFileAreTheSameModel) {
  WeightSlot single(config_, backend_), sharded(config_, backend_);
  write_single(model_);
  const Status loaded = load(single);
  ASSERT_TRUE(loaded.is_ok()) << loaded.to_string();
  std::filesystem::remove(directory_.file("model.safetensors"));
  write_shards(model_);
  const Status shards = load(sharded);
  ASSERT_TRUE(shards.is_ok()) << shards.to_string();
  EXPECT_EQ(single.digest(), sharded.digest());
  for (size_t i = 0; i < single.table().size(); i++) {
    EXPECT_EQ(single.tensor_digest(i), tensor_digest(model_.at(single.table()[i].name).bytes));
  }
}

TEST_F(LoadWeightsTest, ASlotCanBeLoadedAgain) {
  WeightSlot slot(config_, backend_);
  write_single(model_);
  ASSERT_TRUE(load(slot).is_ok());
  const Digest128 digest = slot.digest();
  ASSERT_TRUE(load(slot).is_ok());
  EXPECT_EQ(slot.digest(), digest);
}

TEST_F(LoadWeightsTest, ATiedHeadMayBeThereIfItIsTheEmbedding) {
  model_["lm_head.weight"] = model_.at("model.embed_tokens.weight");
  write_single(model_);
  const Status status = load_fresh();
  EXPECT_TRUE(status.is_ok()) << status.to_string();
  model_["lm_head.weight"].bytes[77] ^= std::byte{1};
  write_single(model_);
  expect_error(load_fresh(), Code::invalid, {"lm_head.weight", "embedding", "model.safetensors"});
}

struct Spoiled {
  const char* what;
  std::function<void(LooseModel&)> spoil;
  Code code;
  std::vector<std::string> named;
};

TEST_F(LoadWeightsTest, EachWrongTensorIsRefusedByNameInOneFileAndInShards) {
  const std::string up = "model.layers.1.mlp.up_proj.weight";
  const std::vector<Spoiled> cases = {
      {"missing", [&](LooseModel& m) { m.erase(up); }, Code::not_found, {up}},
      {"dtype", [&](LooseModel& m) { m[up].dtype = "F16"; }, Code::unsupported, {up, "F16"}},
      {"transposed",
       [&](LooseModel& m) { std::swap(m[up].shape[0], m[up].shape[1]); },
       Code::invalid,
       {up, "[64,96]", "[96,64]"}},
      {"flat", [&](LooseModel& m) { m[up].shape = {96 * 64}; }, Code::invalid, {up, "[6144]"}},
      {"norm as a row",
       [](LooseModel& m) {
         m["model.norm.weight"].shape = {1, 64};
       },
       Code::invalid,
       {"model.norm.weight", "[1,64]", "[64]"}},
      {"extra",
       [&](LooseModel& m) { m["model.layers.2.mlp.up_proj.weight"] = m[up]; },
       Code::invalid,
       {"model.layers.2.mlp.up_proj.weight"}},
      {"bias",
       [&](LooseModel& m) {
         m["model.layers.0.self_attn.q_proj.bias"] = {"BF16", {128}, std::vector<std::byte>(256)};
       },
       Code::invalid,
       {"model.layers.0.self_attn.q_proj.bias"}},
  };
  for (const Spoiled& spoiled : cases) {
    SCOPED_TRACE(spoiled.what);
    LooseModel model = model_;
    spoiled.spoil(model);
    write_single(model);
    expect_error(load_fresh(), spoiled.code, spoiled.named);
    std::filesystem::remove(directory_.file("model.safetensors"));
    write_shards(model);
    expect_error(load_fresh(), spoiled.code, spoiled.named);
  }
}

TEST_F(LoadWeightsTest, ADirectoryWithoutWeightsSaysWhatItLacks) {
  expect_error(load_fresh(), Code::not_found, {directory_.path(), "model.safetensors"});
}

TEST_F(LoadWeightsTest, ATruncatedFileIsCorruptByName) {
  write_single(model_);
  const std::string path = directory_.file("model.safetensors");
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  expect_error(load_fresh(), Code::corrupt, {path});
}

TEST_F(LoadWeightsTest, AnIndexNamesPlainFilesOnly) {
  const Json good = write_shards(model_);
  ASSERT_TRUE(load_fresh().is_ok());
  const std::string tensor = "model.norm.weight";
  for (const Json& name : {Json("../part-0.safetensors"), Json("/etc/passwd"), Json(""), Json("."),
                           Json(".."), Json("a/b.safetensors"), Json(std::string("a\0b", 3)),
                           Json(std::string(300, 'a')), Json(7), Json(nullptr)}) {
    Json index = good;
    index["weight_map"][tensor] = name;
    write_index(index);
    expect_error(load_fresh(), Code::corrupt, {"index.json", tensor});
  }
}

TEST_F(LoadWeightsTest, AnIndexAndItsFilesMustAgree) {
  const Json good = write_shards(model_);
  const std::string tensor = "model.norm.weight";
  const std::string owner = good["weight_map"][tensor];
  const std::string other =
      owner == "part-0.safetensors" ? "part-1.safetensors" : "part-0.safetensors";
  Json moved = good;
  moved["weight_map"][tensor] = other;
  write_index(moved);
  expect_error(load_fresh(), Code::corrupt, {tensor, owner});

  Json dropped = good;
  dropped["weight_map"].erase(tensor);
  write_index(dropped);
  expect_error(load_fresh(), Code::corrupt, {tensor, owner});

  Json lost = good;
  lost["weight_map"][tensor] = "part-9.safetensors";
  write_index(lost);
  expect_error(load_fresh(), Code::not_found, {"part-9.safetensors"});

  Json invented = good;
  invented["weight_map"]["model.norm.bias"] = owner;
  write_index(invented);
  expect_error(load_fresh(), Code::invalid, {"model.norm.bias", owner});
}

TEST_F(LoadWeightsTest, AnIndexThatIsNoIndexIsCorrupt) {
  for (const char* text : {"", "{", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": 3})"}) {
    directory_.write("model.safetensors.index.json", text);
    expect_error(load_fresh(), Code::corrupt, {"index.json"});
  }
}

}  // namespace
}  // namespace exact
