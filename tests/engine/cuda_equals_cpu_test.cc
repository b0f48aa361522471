// The CUDA backend against the CPU's on random models: the same requests, the same bits. What they
// are on their own, the other tests say.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/random_load.h"
#include "tests/support/backends.h"
#include "tests/support/expect_bits.h"

namespace exact {
namespace {

class CudaEqualsCpu : public testing::Test {
 protected:
  void SetUp() override {
    const std::string missing = missing_backend({"cuda", {}, {}});
    if (!missing.empty()) GTEST_SKIP() << missing;
  }

  static StepReport run(const ModelConfig& config, const BackendOptions& backend,
                        const EngineLimits& limits, uint64_t weight_seed,
                        const std::vector<GenerateRequest>& generates,
                        const std::vector<ScoreRequest>& scores) {
    LoadedEngine engine(config, backend, limits, weight_seed);
    for (const GenerateRequest& request : generates) {
      EXPECT_TRUE(engine->submit(request).is_ok());
    }
    for (const ScoreRequest& request : scores) EXPECT_TRUE(engine->submit(request).is_ok());
    return engine.run_all();
  }

  static void expect_same(const StepReport& got, const StepReport& want, const std::string& what) {
    std::map<std::pair<uint64_t, int32_t>, const SampleResult*> samples;
    for (const SampleResult& sample : want.samples) {
      samples[{sample.request.value, sample.sample_index}] = &sample;
    }
    ASSERT_EQ(got.samples.size(), want.samples.size()) << what;
    for (const SampleResult& sample : got.samples) {
      const SampleResult& other = *samples.at({sample.request.value, sample.sample_index});
      const std::string which = what + ", request " + std::to_string(sample.request.value);
      ASSERT_BITS_EQ(sample.tokens, other.tokens, which + ": ids");
      ASSERT_BITS_EQ(sample.logprobs, other.logprobs, which + ": raw");
      ASSERT_BITS_EQ(sample.processed_logprobs, other.processed_logprobs, which + ": processed");
    }
    std::map<uint64_t, const ScoreResult*> scores;
    for (const ScoreResult& score : want.scores) scores[score.request.value] = &score;
    ASSERT_EQ(got.scores.size(), want.scores.size()) << what;
    for (const ScoreResult& score : got.scores) {
      ASSERT_BITS_EQ(score.logprobs, scores.at(score.request.value)->logprobs, what + ": score");
    }
  }
};

TEST_F(CudaEqualsCpu, OnRandomModelsAndLoads) {
  for (uint64_t round = 0; round < 40; round++) {
    RandomData random(RandomData().seed() + round);
    const ModelConfig config = random_config(random);
    const EngineLimits limits = tight_limits(random);
    std::vector<GenerateRequest> generates;
    std::vector<ScoreRequest> scores;
    const int64_t count = random.between(1, 12);
    for (int64_t i = 0; i < count; i++) {
      const RequestId id{static_cast<uint64_t>(i)};
      if (random.between(0, 3) == 0) {
        scores.push_back(random_score(random, config, limits, id));
      } else {
        generates.push_back(random_generate(random, config, limits, id));
      }
    }
    const StepReport want =
        run(config, {"cpu", {}, {}}, roomy_limits(limits), random.seed(), generates, scores);
    for (const bool graphs : {true, false}) {
      const StepReport got =
          run(config, {"cuda", {}, {0, graphs}}, limits, random.seed(), generates, scores);
      ASSERT_NO_FATAL_FAILURE(expect_same(got, want,
                                          random.describe() + ", " + describe(config) + ", " +
                                              describe(limits) + (graphs ? ", graphs" : "")));
    }
  }
}

// As many blocks as a GPU holds at once, and more: whole waves of sequences and heads, prompts and
// decode rows in one step, lengths of all kinds.
TEST_F(CudaEqualsCpu, OnManySequencesAndHeads) {
  for (const int32_t head_width : {64, 128}) {
    RandomData random(77);
    ModelConfig config = random_config(random);
    config.width = 256;
    config.layers = 2;
    config.query_heads = 16;
    config.kv_heads = 8;
    config.head_width = head_width;
    config.rope.head_width = head_width;
    config.feed_forward_width = 384;
    config.vocabulary = 2048;
    EngineLimits limits;
    limits.max_context = 700;
    limits.page_count = 900;
    limits.max_running = 200;
    std::vector<GenerateRequest> generates;
    for (uint64_t id = 1; id <= 70; id++) {
      GenerateRequest request = random_generate(random, config, limits, RequestId{id});
      request.prompt.resize(1 + id * 37 % 256, 3);
      if (id % 23 == 0) request.prompt.resize(600, 5);
      request.n = 1;
      request.max_new_tokens = 12;
      request.stop_ids.clear();
      generates.push_back(std::move(request));
    }
    limits.max_step_tokens = 512;
    const StepReport want = run(config, {"cpu", {}, {}}, limits, 9, generates, {});
    for (const int32_t step_tokens : {256, 512, 2048}) {
      limits.max_step_tokens = step_tokens;
      const StepReport got = run(config, {"cuda", {}, {}}, limits, 9, generates, {});
      ASSERT_NO_FATAL_FAILURE(expect_same(
          got, want,
          "E " + std::to_string(head_width) + ", steps of " + std::to_string(step_tokens)));
    }
  }
}

}  // namespace
}  // namespace exact
