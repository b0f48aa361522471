// A store gives back the weights it was given, bit for bit; keeps a tensor once; believes no file;
// and removes nothing that a version needs.
#include "engine/weights_store.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "engine/hash_model.h"
#include "tests/engine/memory_backend.h"
#include "tests/engine/small_models.h"
#include "tests/support/backends.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_directory.h"

namespace exact {
namespace {

namespace fs = std::filesystem;

class WeightsStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    config_ = small_config("qwen3", true);
    directory_.write("config.json", small_config_text("qwen3", true));
    auto store = WeightsStore::create(path());
    ASSERT_TRUE(store.is_ok()) << store.status().to_string();
    store_ = std::make_unique<WeightsStore>(std::move(*store));
  }

  std::string path() const { return directory_.file("store"); }

  // Stores the weights of `seed` as if it were stored at `seed` microseconds; their digest.
  Digest128 keep(uint64_t seed) {
    const auto slot = hash_slot(config_, backend_, seed);
    const Status kept = store_weights(*store_, *slot, config_, directory_.path(), seed, seed);
    EXPECT_TRUE(kept.is_ok()) << kept.to_string();
    return slot->digest();
  }

  Status load(const Digest128& digest) {
    WeightSlot slot(config_, backend_);
    EXACT_RETURN_IF_ERROR(store_->load(digest, slot));
    EXPECT_EQ(slot.digest(), digest);
    return {};
  }

  std::vector<fs::path> files(const std::string& folder) const {
    std::vector<fs::path> paths;
    for (const auto& entry : fs::directory_iterator(path() + "/" + folder)) {
      paths.push_back(entry.path());
    }
    return paths;
  }

  void flip(const fs::path& file, int64_t from_end) const {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(-from_end, std::ios::end);
    const auto byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(-from_end, std::ios::end);
    stream.put(byte);
  }

  MemoryBackend backend_;
  ModelConfig config_;
  TemporaryDirectory directory_;
  std::unique_ptr<WeightsStore> store_;
};

TEST_F(WeightsStoreTest, GivesBackWhatItWasGiven) {
  const Digest128 first = keep(1), second = keep(2);
  EXPECT_TRUE(load(first).is_ok());
  EXPECT_TRUE(load(second).is_ok());
  const auto listed = store_->list();
  ASSERT_TRUE(listed.is_ok());
  EXPECT_EQ(listed->size(), 2u);
  const auto model = store_->manifest(second);
  ASSERT_TRUE(model.is_ok()) << model.status().to_string();
  EXPECT_EQ(model->weight_version, 2u);
  EXPECT_EQ(model->contract_id, contract_id(config_).to_hex());
  const auto configs = store_->config_directory(*model);
  ASSERT_TRUE(configs.is_ok());
  EXPECT_TRUE(load_config(*configs).is_ok());
}

TEST_F(WeightsStoreTest, KeepsATensorOnce) {
  const Digest128 digest = keep(1);
  const size_t tensors = files("tensors").size();
  EXPECT_EQ(tensors, tensor_table(config_).size());
  const auto slot = hash_slot(config_, backend_, 1);
  auto writer = WeightsWriter::begin(*store_);
  ASSERT_TRUE(writer.is_ok());
  for (size_t i = 0; i < slot->table().size(); i++) {
    const StoredTensor tensor = stored_tensor(slot->table()[i], slot->tensor_digest(i));
    EXPECT_TRUE(writer->has(tensor));
    EXPECT_TRUE(writer->put(tensor, {}).is_ok());  // not even looked at
  }
  EXPECT_EQ(writer->bytes_written(), 0u);
  EXPECT_EQ(keep(1), digest);
  EXPECT_EQ(files("tensors").size(), tensors);
}

TEST_F(WeightsStoreTest, EveryFlippedByteOfATensorFileIsFound) {
  const Digest128 digest = keep(1);
  for (const fs::path& file : files("tensors")) {
    const auto size = static_cast<int64_t>(fs::file_size(file));
    for (const int64_t from_end : {int64_t{1}, size / 2, size - 20}) {
      flip(file, from_end);
      EXPECT_EQ(load(digest).code(), Code::corrupt) << file << " " << from_end;
      flip(file, from_end);
    }
  }
  EXPECT_TRUE(load(digest).is_ok());
}

TEST_F(WeightsStoreTest, EveryFlippedByteOfAManifestIsFoundOrHarmless) {
  const Digest128 digest = keep(1);
  const fs::path file = files("models").at(0);
  const auto size = static_cast<int64_t>(fs::file_size(file));
  for (int64_t from_end = 1; from_end <= size; from_end++) {
    flip(file, from_end);
    const auto model = store_->manifest(digest);
    // What no digest covers, version and time, loads no other weights.
    EXPECT_EQ(model.is_ok() ? model->weights_digest : digest, digest);
    flip(file, from_end);
  }
}

TEST_F(WeightsStoreTest, VerifyNamesWhatIsWrong) {
  keep(1);
  keep(2);
  auto found = store_->verify({});
  ASSERT_TRUE(found.is_ok());
  EXPECT_EQ(found->models, 2u);
  EXPECT_TRUE(found->problems.empty());
  const auto tensors = files("tensors");
  flip(tensors.at(0), 1);
  fs::remove(tensors.at(1));
  fs::resize_file(tensors.at(2), fs::file_size(tensors.at(2)) - 1);
  directory_.write("store/models/" + std::string(32, '0') + ".json", "{}");
  found = store_->verify({});
  ASSERT_TRUE(found.is_ok());
  EXPECT_EQ(found->problems.size(), 4u);
  // What is short is written again; what was removed too.
  keep(1);
  keep(2);
  found = store_->verify({});
  ASSERT_TRUE(found.is_ok());
  EXPECT_EQ(found->problems.size(), 2u);
}

TEST_F(WeightsStoreTest, GarbageGoesByAgeAndReference) {
  const Digest128 one = keep(1), two = keep(2), three = keep(3), four = keep(4);
  const size_t all = files("tensors").size();
  WeightsStore::CollectOptions options;
  options.stored_before_us = 3;
  options.referenced = {one};
  options.dry_run = true;
  auto collected = store_->collect_garbage(options);
  ASSERT_TRUE(collected.is_ok()) << collected.status().to_string();
  EXPECT_EQ(collected->models, std::vector{two});
  EXPECT_EQ(files("tensors").size(), all);
  options.dry_run = false;
  collected = store_->collect_garbage(options);
  ASSERT_TRUE(collected.is_ok());
  EXPECT_EQ(collected->models, std::vector{two});
  EXPECT_EQ(collected->models_left, 3u);
  EXPECT_EQ(files("tensors").size(), all - collected->tensors);
  EXPECT_EQ(load(two).code(), Code::not_found);
  for (const Digest128& digest : {one, three, four}) EXPECT_TRUE(load(digest).is_ok());
  // The last one stored stays, whatever its age.
  options.stored_before_us = UINT64_MAX;
  options.referenced = {};
  ASSERT_TRUE(store_->collect_garbage(options).is_ok());
  EXPECT_EQ(load(one).code(), Code::not_found);
  EXPECT_TRUE(load(four).is_ok());
  EXPECT_EQ(files("tensors").size(), tensor_table(config_).size());
  EXPECT_EQ(files("configs").size(), 1u);
}

TEST_F(WeightsStoreTest, NothingGoesWhileSomebodyWritesOrAManifestIsBroken) {
  const Digest128 digest = keep(1);
  keep(2);
  WeightsStore::CollectOptions options;
  options.stored_before_us = UINT64_MAX;
  {
    const auto writer = WeightsWriter::begin(*store_);
    ASSERT_TRUE(writer.is_ok());
    EXPECT_EQ(store_->collect_garbage(options).status().code(), Code::exhausted);
  }
  const std::string broken =
      directory_.write("store/models/" + std::string(32, '0') + ".json", "{}");
  EXPECT_EQ(store_->collect_garbage(options).status().code(), Code::corrupt);
  EXPECT_TRUE(load(digest).is_ok());
  fs::remove(broken);
  EXPECT_TRUE(store_->collect_garbage(options).is_ok());
}

TEST_F(WeightsStoreTest, AWriterThatDiedLeavesNoVersionAndIsSweptUp) {
  const auto slot = hash_slot(config_, backend_, 1);
  directory_.write("store/tensors/" + std::string(32, 'a') + ".safetensors.17.0.tmp", "half");
  EXPECT_EQ(load(slot->digest()).code(), Code::not_found);
  const auto collected = store_->collect_garbage({});
  ASSERT_TRUE(collected.is_ok());
  EXPECT_EQ(collected->leftover, 1u);
  EXPECT_TRUE(files("tensors").empty());
}

TEST_F(WeightsStoreTest, BytesThatAreNotTheTensorsAreRefused) {
  const auto slot = hash_slot(config_, backend_, 1);
  auto writer = WeightsWriter::begin(*store_);
  ASSERT_TRUE(writer.is_ok());
  const StoredTensor tensor = stored_tensor(slot->table()[0], slot->tensor_digest(0));
  EXPECT_EQ(writer->put(tensor, std::vector<std::byte>(tensor.bytes)).code(), Code::corrupt);
  StoredModel model = describe_weights(*slot, config_);
  ASSERT_TRUE(writer->put_config(directory_.path(), model).is_ok());
  EXPECT_EQ(writer->finish(model).code(), Code::not_found);  // its tensors are not there
  EXPECT_TRUE(files("models").empty());
}

TEST_F(WeightsStoreTest, AnotherModelsSlotIsNotFilled) {
  const Digest128 digest = keep(1);
  WeightSlot slot(small_config("llama", true), backend_);
  EXPECT_EQ(store_->load(digest, slot).code(), Code::invalid);
}

TEST_F(WeightsStoreTest, ExportsAModelThatLoads) {
  const Digest128 digest = keep(5);
  const std::string out = directory_.file("exported");
  const Status exported = store_->export_model(digest, out, {});
  ASSERT_TRUE(exported.is_ok()) << exported.to_string();
  const auto config = load_config(out);
  ASSERT_TRUE(config.is_ok());
  WeightSlot slot(*config, backend_);
  ASSERT_TRUE(load_weights(out, slot).is_ok());
  EXPECT_EQ(slot.digest(), digest);
  EXPECT_EQ(store_->export_model(digest, out, {}).code(), Code::invalid);  // not empty
}

TEST_F(WeightsStoreTest, OpenWantsAStore) {
  EXPECT_EQ(WeightsStore::open(directory_.path()).status().code(), Code::not_found);
  EXPECT_TRUE(WeightsStore::open(path()).is_ok());
}

struct ReadBackBackend {
  const char* name;
  BackendOptions options;
};

class WeightSlotReadBack : public testing::TestWithParam<ReadBackBackend> {};

TEST_P(WeightSlotReadBack, EveryTensorOfEveryModelIsWhatWasAppended) {
  const std::string missing = missing_backend(GetParam().options);
  if (!missing.empty()) GTEST_SKIP() << missing;
  const auto backend = make_backend(GetParam().options);
  ASSERT_TRUE(backend.is_ok());
  for (const char* type : {"llama", "qwen2", "qwen3"}) {
    for (const bool tied : {false, true}) {
      const auto slot = hash_slot(small_config(type, tied), **backend, 11);
      for (size_t i = 0; i < slot->table().size(); i++) {
        const TensorSpec& spec = slot->table()[i];
        std::vector<std::byte> bytes(static_cast<size_t>(spec.bytes()));
        const Status read = slot->read_tensor(i, bytes);
        ASSERT_TRUE(read.is_ok()) << read.to_string();
        EXPECT_EQ(tensor_digest(bytes), slot->tensor_digest(i)) << type << " " << spec.name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Backends, WeightSlotReadBack,
    testing::Values(ReadBackBackend{"scalar", {"cpu", {CpuIsa::scalar, 2}, {}}},
                    ReadBackBackend{"avx2", {"cpu", {CpuIsa::avx2, 2}, {}}},
                    ReadBackBackend{"avx512", {"cpu", {CpuIsa::avx512, 2}, {}}},
                    ReadBackBackend{"cuda", {"cuda", {}, {}}}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace exact
