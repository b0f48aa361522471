// The scorer against stock PyTorch's golden bits, and the check of completions against lies.
#include "trainer_bridge/scorer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "kernels/base/bf16.h"
#include "kernels/contract/hash_init.h"
#include "tests/support/expect_bits.h"
#include "tests/worker/bridge_fixture.h"
#include "trainer_bridge/completion_check.h"
#include "trainer_bridge/host_tensors.h"

namespace exact::bridge_tests {
namespace {

using bridge::Scorer;

std::unique_ptr<Scorer> scorer_of(const ModelConfig& config,
                                  const std::vector<bridge::HostTensor>& tensors, int threads = 1) {
  auto scorer = Scorer::from_tensors(config, bridge::named_tensors(tensors), {threads, 256});
  EXPECT_TRUE(scorer.is_ok()) << scorer.status().to_string();
  return std::move(*scorer);
}

std::vector<int32_t> text_of(uint64_t seed, size_t length, int32_t vocabulary) {
  const contract::HashStream ids("text", seed);
  std::vector<int32_t> text(length);
  for (size_t i = 0; i < length; i++) {
    text[i] = static_cast<int32_t>(ids.bits24(i) % static_cast<uint32_t>(vocabulary));
  }
  return text;
}

TEST(Scorer, EqualsStockPyTorchOnGoldenSequences) {
  const std::string directory = std::string(EXACT_GOLDEN_DIR) + "/qwen3-d64";
  const auto config = load_config(directory);
  ASSERT_TRUE(config.is_ok()) << config.status().to_string();
  const auto facts = nlohmann::json::parse(read_text(directory + "/config.json")).at("_golden");
  auto file = SafetensorsFile::open(directory + "/golden.safetensors");
  ASSERT_TRUE(file.is_ok()) << file.status().to_string();
  const auto length = facts.at("length").get<size_t>();
  const auto scorer =
      scorer_of(*config, hash_tensors(*config, facts.at("seed").get<uint64_t>()), 0);
  for (const size_t sequence : {0, 7, 15}) {
    std::vector<int32_t> text(length);
    std::memcpy(text.data(), file->find("input_ids")->bytes.subspan(sequence * length * 4).data(),
                length * 4);
    std::vector<float> golden(length - 1);
    std::memcpy(golden.data(),
                file->find("logprobs")->bytes.subspan(sequence * (length - 1) * 4).data(),
                (length - 1) * 4);
    const auto scored = scorer->score(text);
    ASSERT_TRUE(scored.is_ok()) << scored.status().to_string();
    EXPECT_BITS_EQ(std::span<const float>(*scored), std::span<const float>(golden),
                   "sequence " + std::to_string(sequence));
  }
}

TEST(Scorer, ManyTextsHaveTheBitsOfEachAlone) {
  const ModelConfig config = tiny_config();
  const auto scorer = scorer_of(config, hash_tensors(config, 4));
  std::vector<std::vector<int32_t>> texts;
  for (uint64_t i = 0; i < 90; i++) texts.push_back(text_of(i, 2 + i % 37, config.vocabulary));
  const auto together = scorer->score(texts);
  ASSERT_TRUE(together.is_ok()) << together.status().to_string();
  ASSERT_EQ(together->size(), texts.size());
  for (size_t i = 0; i < texts.size(); i += 11) {
    const auto alone = scorer->score(texts[i]);
    ASSERT_TRUE(alone.is_ok());
    EXPECT_BITS_EQ(std::span<const float>((*together)[i]), std::span<const float>(*alone),
                   "text " + std::to_string(i));
  }
}

TEST(Scorer, NewWeightsReplaceTheOldWhollyOrNotAtAll) {
  const ModelConfig config = tiny_config();
  const auto first = hash_tensors(config, 5);
  auto second = hash_tensors(config, 6);
  const auto fresh = scorer_of(config, second);
  const auto scorer = scorer_of(config, first);
  const std::vector<int32_t> text = text_of(1, 40, config.vocabulary);
  const auto before = scorer->score(text);
  ASSERT_TRUE(before.is_ok());
  const std::string digest = scorer->weights_digest();

  const bridge::HostTensor last = second.back();
  second.pop_back();
  const Status missing = scorer->set_weights(bridge::named_tensors(second));
  EXPECT_EQ(missing.code(), Code::invalid);
  EXPECT_NE(missing.message().find(last.name), std::string::npos) << missing.message();
  second.push_back(last);
  second.back().name = "stranger";
  const Status stranger = scorer->set_weights(bridge::named_tensors(second));
  EXPECT_NE(stranger.message().find("'stranger'"), std::string::npos) << stranger.message();
  second.back() = last;
  second.back().shape.push_back(1);
  const Status shape = scorer->set_weights(bridge::named_tensors(second));
  EXPECT_NE(shape.message().find(last.name), std::string::npos) << shape.message();
  EXPECT_EQ(scorer->weights_digest(), digest);
  EXPECT_EQ(*scorer->score(text), *before);

  second.back() = last;
  const Status replaced = scorer->set_weights(bridge::named_tensors(second));
  ASSERT_TRUE(replaced.is_ok()) << replaced.to_string();
  EXPECT_EQ(scorer->weights_digest(), fresh->weights_digest());
  EXPECT_EQ(*scorer->score(text), *fresh->score(text));
  EXPECT_EQ(scorer->last_logits_hash(), fresh->last_logits_hash());
}

TEST(Scorer, BadTextsAreRefusedAndHarmNoOther) {
  const ModelConfig config = tiny_config();
  const auto scorer = scorer_of(config, hash_tensors(config, 4));
  const std::vector<int32_t> good = text_of(3, 20, config.vocabulary);
  const auto expected = scorer->score(good);
  ASSERT_TRUE(expected.is_ok());
  for (const std::vector<int32_t>& bad : {std::vector<int32_t>{},
                                          {1},
                                          {1, -1},
                                          {1, config.vocabulary},
                                          std::vector<int32_t>(257, 1)}) {
    EXPECT_EQ(scorer->score(bad).status().code(), Code::invalid);
    const std::vector<std::vector<int32_t>> texts{good, bad, good};
    EXPECT_EQ(scorer->score(texts).status().code(), Code::invalid);
    const auto again = scorer->score(good);
    ASSERT_TRUE(again.is_ok()) << again.status().to_string();
    EXPECT_EQ(*again, *expected);
  }
}

TEST(Scorer, DirectoryAndMemoryAreTheSameModel) {
  const PrivateEndpoint scratch;
  const std::string config_path = scratch.directory() + "/config.json";
  const std::string model = scratch.directory() + "/model";
  std::ofstream(config_path) << kTinyConfig;
  HashModelOptions options;
  options.seed = 12;
  options.max_shard_bytes = 100'000;  // several files
  const Status made = make_model(config_path, model, options);
  ASSERT_TRUE(made.is_ok()) << made.to_string();

  const auto config = load_config(model);
  ASSERT_TRUE(config.is_ok()) << config.status().to_string();
  const auto tensors = bridge::load_host_tensors(*config, model);
  ASSERT_TRUE(tensors.is_ok()) << tensors.status().to_string();
  const auto from_directory = Scorer::from_directory(model);
  ASSERT_TRUE(from_directory.is_ok()) << from_directory.status().to_string();
  const auto from_memory = scorer_of(*config, *tensors);
  EXPECT_EQ((*from_directory)->weights_digest(), from_memory->weights_digest());
  EXPECT_EQ((*from_directory)->contract_id(), from_memory->contract_id());
  EXPECT_EQ((*from_directory)->contract_id(), contract_id(*config).to_hex());
  const std::vector<int32_t> text = text_of(2, 30, config->vocabulary);
  EXPECT_EQ(*(*from_directory)->score(text), *from_memory->score(text));

  EXPECT_EQ(Scorer::from_directory(scratch.directory() + "/nothing").status().code(),
            Code::not_found);
  EXPECT_EQ(bridge::load_host_tensors(*config, scratch.directory() + "/nothing").status().code(),
            Code::not_found);
  const auto elsewhere = bridge::load_host_tensors(*config, scratch.directory());
  EXPECT_NE(elsewhere.status().message().find("model.embed_tokens.weight"), std::string::npos)
      << elsewhere.status().to_string();
}

// ---- the check must be able to fail
class CompletionCheck : public testing::Test {
 protected:
  void SetUp() override {
    config_ = tiny_config();
    scorer_ = scorer_of(config_, hash_tensors(config_, 8));
    prompt_ = text_of(4, 9, config_.vocabulary);
    ipc::Completion completion;
    completion.tokens = text_of(5, 6, config_.vocabulary);
    std::vector<int32_t> text = prompt_;
    text.insert(text.end(), completion.tokens.begin(), completion.tokens.end());
    const auto logprobs = scorer_->score(text);
    ASSERT_TRUE(logprobs.is_ok());
    completion.logprobs.assign(logprobs->end() - 6, logprobs->end());
    completion.processed_logprobs = completion.logprobs;
    completion.versions = {{0, 3, scorer_->weights_digest()}};
    reply_.contract_id = scorer_->contract_id();
    reply_.completions = {completion};
  }
  Result<bridge::CompletionCheck> check() {
    const std::vector<bridge::ScoredVersion> versions{{3, scorer_.get()}};
    return bridge::check_completions(prompt_, reply_, versions);
  }
  void expect_error(Code code, const std::string& what) {
    const auto result = check();
    ASSERT_FALSE(result.is_ok()) << what;
    EXPECT_EQ(result.status().code(), code) << result.status().to_string();
    EXPECT_NE(result.status().message().find(what), std::string::npos)
        << result.status().to_string();
  }
  ipc::Completion& completion() { return reply_.completions[0]; }

  ModelConfig config_;
  std::unique_ptr<Scorer> scorer_;
  std::vector<int32_t> prompt_;
  ipc::GenerateReply reply_;
};

TEST_F(CompletionCheck, TrueBitsPass) {
  const auto result = check();
  ASSERT_TRUE(result.is_ok()) << result.status().to_string();
  EXPECT_EQ(result->logprobs_checked, 6u);
  EXPECT_EQ(result->mismatches, 0u);
}

TEST_F(CompletionCheck, OneWrongBitIsFoundAndShown) {
  for (size_t t = 0; t < 6; t++) {
    SetUp();
    const uint32_t bits = float_bits(completion().logprobs[t]) ^ 1;
    completion().logprobs[t] = float_from_bits(bits);
    const auto result = check();
    ASSERT_TRUE(result.is_ok()) << result.status().to_string();
    EXPECT_EQ(result->mismatches, 1u);
    ASSERT_TRUE(result->first_difference.has_value());
    EXPECT_EQ(result->first_difference->token_index, static_cast<int32_t>(t));
    EXPECT_EQ(result->first_difference->worker_bits, bits);
    EXPECT_EQ(result->first_difference->trainer_bits, bits ^ 1);
    EXPECT_NE(result->first_difference->to_string().find("version 3"), std::string::npos);
  }
}

TEST_F(CompletionCheck, AnotherTokenIsFound) {
  completion().tokens[2] = (completion().tokens[2] + 1) % config_.vocabulary;
  const auto result = check();
  ASSERT_TRUE(result.is_ok());
  EXPECT_GT(result->mismatches, 0u);
}

TEST_F(CompletionCheck, LiesAboutVersionsAndContractsAreErrors) {
  completion().versions[0].weight_version = 4;
  expect_error(Code::corrupt, "version 4");
  SetUp();
  completion().versions[0].weights_digest = std::string(32, '0');
  expect_error(Code::corrupt, std::string(32, '0'));
  SetUp();
  reply_.contract_id = std::string(32, '0');
  expect_error(Code::contract_mismatch, std::string(32, '0'));
  SetUp();
  completion().versions[0].begin = 1;
  expect_error(Code::corrupt, "spans");
  SetUp();
  completion().versions.push_back({6, 3, scorer_->weights_digest()});
  expect_error(Code::corrupt, "spans");
  SetUp();
  completion().versions.clear();
  expect_error(Code::corrupt, "no version");
  SetUp();
  completion().logprobs.pop_back();
  expect_error(Code::corrupt, "number of log-probabilities");
  SetUp();
  completion().finish_reason = static_cast<uint8_t>(FinishReason::error);
  completion().error = "a logit is NaN";
  expect_error(Code::corrupt, "a logit is NaN");
}

}  // namespace
}  // namespace exact::bridge_tests
