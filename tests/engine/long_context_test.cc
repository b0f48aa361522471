// What a config says of long contexts, seen at the engine: RoPE's scaling reaches the tables, a
// window ends the context, and where neither scales anything the bits are the plain model's.
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/engine/small_models.h"
#include "tests/support/expect_bits.h"
#include "tests/support/model_fixture.h"

namespace exact {
namespace {

using Json = nlohmann::json;

class LongContext : public testing::Test {
 protected:
  void SetUp() override {
    auto backend = make_cpu_backend();
    ASSERT_TRUE(backend.is_ok());
    backend_ = std::move(backend).value();
  }

  Result<std::unique_ptr<Engine>> make_engine(const Json& json, int32_t max_context) {
    EXACT_ASSIGN(const ModelConfig config, parse_config(json.dump()));
    EngineLimits limits;
    limits.max_context = max_context;
    return Engine::create(config, *backend_, hash_slot(config, *backend_, 1), limits);
  }

  // Of 100 tokens.
  std::vector<float> logprobs(const Json& json) {
    auto engine = make_engine(json, 100);
    EXPECT_TRUE(engine.is_ok()) << engine.status().to_string();
    if (!engine.is_ok()) return {};
    ScoreRequest request;
    request.id = RequestId{1};
    for (int32_t i = 0; i < 100; i++) request.tokens.push_back((i * 37) % 128);
    EXPECT_TRUE((*engine)->submit(request).is_ok());
    while ((*engine)->has_work()) {
      auto report = (*engine)->step();
      EXPECT_TRUE(report.is_ok()) << report.status().to_string();
      if (!report.is_ok()) break;
      if (!report->scores.empty()) return report->scores[0].logprobs;
    }
    ADD_FAILURE() << "no score";
    return {};
  }

  static Json with_rope(const Json& rope) {
    Json config = Json::parse(small_config_text("qwen3", true));
    config["rope_parameters"] = rope;
    config["rope_parameters"]["rope_theta"] = 10000.0;
    return config;
  }

  static Json with_window(int32_t window) {
    Json config = Json::parse(small_config_text("qwen2", true));
    config["use_sliding_window"] = true;
    config["max_window_layers"] = 1;
    config["sliding_window"] = window;
    return config;
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(LongContext, AFactorOfOneIsThePlainModel) {
  const std::vector<float> plain = logprobs(with_rope({{"rope_type", "default"}}));
  EXPECT_BITS_EQ(logprobs(with_rope({{"rope_type", "linear"}, {"factor", 1}})), plain, "linear");
  // Without a ramp: every index lies before it.
  EXPECT_BITS_EQ(
      logprobs(with_rope(
          {{"rope_type", "yarn"}, {"factor", 1}, {"original_max_position_embeddings", 1 << 24}})),
      plain, "yarn");
}

TEST_F(LongContext, EachScalingReachesTheModel) {
  const Json yarn = {
      {"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 64}};
  Json unscaled = yarn;
  unscaled["attention_factor"] = 1.0;  // the frequencies alone
  Json spelled = yarn;
  spelled["attention_factor"] = 1.1386294361119891;  // 0.1 ln 4 + 1
  const std::vector<float> of_yarn = logprobs(with_rope(yarn));
  EXPECT_NE(of_yarn, logprobs(with_rope({{"rope_type", "default"}})));
  EXPECT_NE(of_yarn, logprobs(with_rope({{"rope_type", "linear"}, {"factor", 4}})));
  EXPECT_NE(of_yarn, logprobs(with_rope(unscaled)));
  EXPECT_BITS_EQ(of_yarn, logprobs(with_rope(spelled)), "the default scale");
}

TEST_F(LongContext, BelowTheWindowBitsAreThoseWithoutOne) {
  Json plain = with_window(101);
  plain["use_sliding_window"] = false;
  EXPECT_BITS_EQ(logprobs(with_window(101)), logprobs(plain), "window 101, 100 tokens");
}

TEST_F(LongContext, AtTheWindowAContextIsRefusedByName) {
  for (const int32_t context : {100, 512}) {
    const auto engine = make_engine(with_window(100), context);
    ASSERT_FALSE(engine.is_ok());
    EXPECT_EQ(engine.status().code(), Code::unsupported);
    for (const char* word : {"max_context", "sliding_window of 100", "up to 99"}) {
      EXPECT_NE(engine.status().message().find(word), std::string::npos)
          << engine.status().message();
    }
  }
  auto engine = make_engine(with_window(100), 0);  // the default is what the window allows
  ASSERT_TRUE(engine.is_ok()) << engine.status().to_string();
  EXPECT_EQ((*engine)->limits().max_context, 99);
}

}  // namespace
}  // namespace exact
