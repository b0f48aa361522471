// A slot of weights: every tensor lands where it belongs, whatever the pieces it came in; nothing
// incomplete, doubled or wrong is ever taken for a model.
#include "engine/weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "engine/hash_model.h"
#include "tests/engine/memory_backend.h"
#include "tests/engine/small_models.h"

namespace exact {
namespace {

constexpr uint64_t kSeed = 7;

struct Variant {
  const char* type;
  bool tied;
};
constexpr Variant kVariants[] = {{"llama", false}, {"llama", true},  {"qwen2", false},
                                 {"qwen2", true},  {"qwen3", false}, {"qwen3", true}};

std::vector<std::byte> tensor_data(const TensorSpec& spec, const ModelConfig& config,
                                   uint64_t seed = kSeed) {
  std::vector<uint16_t> values(static_cast<size_t>(spec.rows * spec.columns));
  hash_tensor(spec, config, seed, values);
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

Status append_all(WeightSlot& slot, const ModelConfig& config, uint64_t seed = kSeed) {
  for (size_t i = 0; i < slot.table().size(); i++) {
    EXACT_RETURN_IF_ERROR(slot.append(i, tensor_data(slot.table()[i], config, seed)));
  }
  return slot.complete();
}

// The memory that a name stands for: bytes [offset, offset + size of the tensor) of a buffer.
struct Place {
  const Buffer* buffer = nullptr;
  size_t offset = 0;
};

Place find_in_layer(const LayerWeights& layer, const ModelConfig& config, const std::string& name) {
  const auto head = static_cast<size_t>(config.head_width);
  const size_t query = static_cast<size_t>(config.query_heads) * head;
  const size_t kv = static_cast<size_t>(config.kv_heads) * head;
  const auto feed_forward = static_cast<size_t>(config.feed_forward_width);
  const size_t row = static_cast<size_t>(config.width) * 2;
  const std::pair<const char*, Place> places[] = {
      {"input_layernorm.weight", {&layer.input_norm}},
      {"post_attention_layernorm.weight", {&layer.post_norm}},
      {"self_attn.q_norm.weight", {&layer.query_norm}},
      {"self_attn.k_norm.weight", {&layer.key_norm}},
      {"self_attn.q_proj.weight", {&layer.qkv.storage}},
      {"self_attn.k_proj.weight", {&layer.qkv.storage, query * row}},
      {"self_attn.v_proj.weight", {&layer.qkv.storage, (query + kv) * row}},
      {"self_attn.o_proj.weight", {&layer.output.storage}},
      {"mlp.gate_proj.weight", {&layer.gate_up.storage}},
      {"mlp.up_proj.weight", {&layer.gate_up.storage, feed_forward * row}},
      {"mlp.down_proj.weight", {&layer.down.storage}},
      {"self_attn.q_proj.bias", {&layer.qkv_bias}},
      {"self_attn.k_proj.bias", {&layer.qkv_bias, query * 2}},
      {"self_attn.v_proj.bias", {&layer.qkv_bias, (query + kv) * 2}},
      {"self_attn.o_proj.bias", {&layer.output_bias}},
      {"mlp.gate_proj.bias", {&layer.gate_up_bias}},
      {"mlp.up_proj.bias", {&layer.gate_up_bias, feed_forward * 2}},
      {"mlp.down_proj.bias", {&layer.down_bias}},
  };
  for (const auto& [suffix, place] : places) {
    if (name == suffix) return place;
  }
  return {};
}

// The memory that Hugging Face's name stands for.
Place find_place(const ModelWeights& weights, const ModelConfig& config, const std::string& name) {
  if (name == "model.embed_tokens.weight") return {&weights.embedding};
  if (name == "model.norm.weight") return {&weights.final_norm};
  if (name == "lm_head.weight") return {&weights.lm_head.storage};
  const std::string prefix = "model.layers.";
  if (!name.starts_with(prefix)) return {};
  const size_t dot = name.find('.', prefix.size());
  const size_t layer = std::stoul(name.substr(prefix.size()));
  return find_in_layer(weights.layers.at(layer), config, name.substr(dot + 1));
}

void expect_place(const ModelWeights& weights, const ModelConfig& config, const std::string& name,
                  const std::vector<std::byte>& want) {
  const Place place = find_place(weights, config, name);
  ASSERT_NE(place.buffer, nullptr) << name;
  ASSERT_GE(place.buffer->bytes(), place.offset + want.size()) << name;
  const auto* got = static_cast<const std::byte*>(place.buffer->data()) + place.offset;
  const auto first = std::mismatch(want.begin(), want.end(), got).first - want.begin();
  EXPECT_EQ(static_cast<size_t>(first), want.size()) << name << ": first differing byte " << first;
}

void expect_model(const WeightSlot& slot, const ModelConfig& config, uint64_t seed = kSeed) {
  for (const TensorSpec& spec : slot.table()) {
    expect_place(slot.weights(), config, spec.name, tensor_data(spec, config, seed));
  }
}

class WeightSlotTest : public testing::Test {
 protected:
  ModelConfig config_ = small_config("llama", false);
  MemoryBackend backend_;
  WeightSlot slot_{config_, backend_};
};

TEST(WeightSlot, EveryTensorLandsWhereItsNameSays) {
  for (const Variant& variant : kVariants) {
    SCOPED_TRACE(std::string(variant.type) + (variant.tied ? " tied" : ""));
    const ModelConfig config = small_config(variant.type, variant.tied);
    MemoryBackend backend;
    WeightSlot slot(config, backend);
    const Status filled = append_all(slot, config);
    ASSERT_TRUE(filled.is_ok()) << filled.to_string();
    EXPECT_TRUE(slot.is_complete());
    expect_model(slot, config);
    EXPECT_EQ(slot.weights().lm_head.out_features, config.vocabulary);
    EXPECT_EQ(slot.weights().lm_head.in_features, config.width);
  }
}

TEST(WeightSlot, ATiedHeadIsTheEmbedding) {
  const ModelConfig config = small_config("qwen3", true);
  MemoryBackend backend;
  WeightSlot slot(config, backend);
  ASSERT_TRUE(append_all(slot, config).is_ok());
  expect_place(slot.weights(), config, "lm_head.weight", tensor_data(slot.table().front(), config));
}

TEST(WeightSlot, PiecesAndOrderDoNotMatter) {
  for (const uint64_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const ModelConfig config = small_config("llama", seed % 2 == 0);
    MemoryBackend backend;
    WeightSlot whole(config, backend), pieces(config, backend);
    ASSERT_TRUE(append_all(whole, config).is_ok());

    std::mt19937_64 random(seed);
    std::vector<size_t> order(pieces.table().size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t index : order) {
      const std::vector<std::byte> data = tensor_data(pieces.table()[index], config);
      for (size_t at = 0; at < data.size();) {
        // A copy of its own, odd addresses too, gone as soon as append() is back.
        const size_t count = std::min(data.size() - at, size_t{1} + random() % 5000);
        std::vector<std::byte> piece(1);
        piece.insert(piece.end(), data.begin() + static_cast<ptrdiff_t>(at),
                     data.begin() + static_cast<ptrdiff_t>(at + count));
        const Status status = pieces.append(index, std::span(piece).subspan(1));
        ASSERT_TRUE(status.is_ok()) << status.to_string();
        at += count;
      }
    }
    ASSERT_TRUE(pieces.complete().is_ok());
    expect_model(pieces, config);
    EXPECT_EQ(pieces.digest(), whole.digest());
  }
}

TEST_F(WeightSlotTest, DigestsAreThoseOfTheBytes) {
  ASSERT_TRUE(append_all(slot_, config_).is_ok());
  DigestStream text;
  for (size_t i = 0; i < slot_.table().size(); i++) {
    const Digest128 digest = tensor_digest(tensor_data(slot_.table()[i], config_));
    EXPECT_EQ(slot_.tensor_digest(i), digest);
    EXPECT_TRUE(slot_.verify(i, digest).is_ok());
    text.update(slot_.table()[i].name + "=" + digest.to_hex() + "\n");
  }
  EXPECT_EQ(slot_.digest(), text.finish());
}

TEST_F(WeightSlotTest, OneBitOfAnyTensorChangesTheModelsDigest) {
  ASSERT_TRUE(append_all(slot_, config_).is_ok());
  const Digest128 digest = slot_.digest();
  for (size_t changed = 0; changed < slot_.table().size(); changed++) {
    WeightSlot other(config_, backend_);
    for (size_t i = 0; i < slot_.table().size(); i++) {
      std::vector<std::byte> data = tensor_data(slot_.table()[i], config_);
      if (i == changed) data.back() ^= std::byte{1};
      ASSERT_TRUE(other.append(i, data).is_ok());
    }
    EXPECT_NE(other.digest(), digest) << slot_.table()[changed].name;
  }
}

// ---- refusals

void expect_error(const Status& status, Code code, const std::string& named) {
  EXPECT_EQ(status.code(), code) << status.to_string();
  EXPECT_NE(status.message().find(named), std::string::npos) << status.to_string();
}

TEST_F(WeightSlotTest, ASecondTensorWaitsForTheFirst) {
  const auto first = tensor_data(slot_.table()[0], config_);
  const auto second = tensor_data(slot_.table()[1], config_);
  ASSERT_TRUE(slot_.append(0, std::span(first).first(100)).is_ok());
  const Status status = slot_.append(1, second);
  expect_error(status, Code::invalid, slot_.table()[0].name);
  expect_error(status, Code::invalid, slot_.table()[1].name);
  // The refusal changed nothing: both can still arrive.
  EXPECT_TRUE(slot_.append(0, std::span(first).subspan(100)).is_ok());
  EXPECT_TRUE(slot_.append(1, second).is_ok());
  EXPECT_EQ(slot_.tensor_digest(0), tensor_digest(first));
}

TEST_F(WeightSlotTest, MoreBytesThanATensorHasAreRefused) {
  std::vector<std::byte> data = tensor_data(slot_.table()[0], config_);
  data.push_back({});
  expect_error(slot_.append(0, data), Code::invalid, slot_.table()[0].name);
  ASSERT_TRUE(slot_.append(0, std::span(data).first(10)).is_ok());
  expect_error(slot_.append(0, std::span(data).subspan(10)), Code::invalid, slot_.table()[0].name);
  EXPECT_TRUE(slot_.append(0, std::span(data).subspan(10, data.size() - 11)).is_ok());
}

TEST_F(WeightSlotTest, AWholeTensorIsNotSentAgain) {
  const auto data = tensor_data(slot_.table()[0], config_);
  ASSERT_TRUE(slot_.append(0, data).is_ok());
  expect_error(slot_.append(0, data), Code::invalid, slot_.table()[0].name);
  expect_error(slot_.append(0, {}), Code::invalid, slot_.table()[0].name);
}

TEST_F(WeightSlotTest, AMissingTensorIsNamed) {
  for (const size_t missing : {size_t{0}, size_t{5}, slot_.table().size() - 1}) {
    slot_.begin();
    for (size_t i = 0; i < slot_.table().size(); i++) {
      if (i == missing) continue;
      ASSERT_TRUE(slot_.append(i, tensor_data(slot_.table()[i], config_)).is_ok());
    }
    expect_error(slot_.complete(), Code::invalid, slot_.table()[missing].name);
    EXPECT_FALSE(slot_.is_complete());
    // It can still come, and then the model is whole.
    ASSERT_TRUE(slot_.append(missing, tensor_data(slot_.table()[missing], config_)).is_ok());
    EXPECT_TRUE(slot_.complete().is_ok());
  }
}

TEST_F(WeightSlotTest, ATensorCutShortIsNamed) {
  const size_t last = slot_.table().size() - 1;
  for (size_t i = 0; i < last; i++) {
    ASSERT_TRUE(slot_.append(i, tensor_data(slot_.table()[i], config_)).is_ok());
  }
  const auto data = tensor_data(slot_.table()[last], config_);
  ASSERT_TRUE(slot_.append(last, std::span(data).first(data.size() - 1)).is_ok());
  expect_error(slot_.complete(), Code::invalid, slot_.table()[last].name);
  expect_error(slot_.verify(last, {}), Code::invalid, slot_.table()[last].name);
}

TEST_F(WeightSlotTest, AWrongDigestIsCorruptByName) {
  const auto data = tensor_data(slot_.table()[2], config_);
  ASSERT_TRUE(slot_.append(2, data).is_ok());
  Digest128 wrong = tensor_digest(data);
  wrong.low ^= 1;
  const Status status = slot_.verify(2, wrong);
  expect_error(status, Code::corrupt, slot_.table()[2].name);
  expect_error(status, Code::corrupt, wrong.to_hex());
}

TEST_F(WeightSlotTest, AFailedDeviceMakesNoModel) {
  const auto data = tensor_data(slot_.table()[0], config_);
  backend_.next_finish = Status(Code::device, "the cable fell out");
  expect_error(slot_.append(0, data), Code::device, "cable");
  expect_error(slot_.complete(), Code::invalid, slot_.table()[0].name);
  slot_.begin();
  EXPECT_TRUE(append_all(slot_, config_).is_ok());
  expect_model(slot_, config_);
}

TEST_F(WeightSlotTest, NoMemoryIsExhaustedNotACrash) {
  for (int allowed = 0; allowed < 5; allowed++) {
    MemoryBackend backend;
    backend.allocations_left = allowed;
    WeightSlot slot(config_, backend);
    expect_error(append_all(slot, config_), Code::exhausted, "memory");
    EXPECT_FALSE(slot.is_complete());
  }
}

// ---- the next version

TEST_F(WeightSlotTest, BeginForgetsTheModelAndKeepsItsMemory) {
  ASSERT_TRUE(append_all(slot_, config_).is_ok());
  const Digest128 digest = slot_.digest();
  const void* embedding = slot_.weights().embedding.data();
  const int allocations = backend_.allocations;

  slot_.begin();
  EXPECT_FALSE(slot_.is_complete());
  expect_error(slot_.complete(), Code::invalid, slot_.table()[0].name);
  ASSERT_TRUE(append_all(slot_, config_, kSeed + 1).is_ok());
  EXPECT_EQ(backend_.allocations, allocations);
  EXPECT_EQ(slot_.weights().embedding.data(), embedding);
  EXPECT_NE(slot_.digest(), digest);
  expect_model(slot_, config_, kSeed + 1);
}

TEST_F(WeightSlotTest, BeginDropsAnOpenTensor) {
  const auto data = tensor_data(slot_.table()[0], config_);
  ASSERT_TRUE(slot_.append(0, std::span(data).first(100)).is_ok());
  slot_.begin();
  ASSERT_TRUE(append_all(slot_, config_).is_ok());  // from the first byte again
  expect_model(slot_, config_);
}

using WeightSlotDeathTest = WeightSlotTest;

TEST_F(WeightSlotDeathTest, IncompleteWeightsCanNotBeUsed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(slot_.weights(), "complete");
  EXPECT_DEATH((void)slot_.tensor_digest(0), "not whole");
}

}  // namespace
}  // namespace exact
