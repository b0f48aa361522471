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

}  // namespace
}  // namespace exact
