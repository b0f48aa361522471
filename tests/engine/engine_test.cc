// The engine's promises one by one: refusals, ends of a request, cancel, updates between steps.
// That no bit depends on the schedule is batch_invariance_test.cc's.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "engine/hash_model.h"
#include "tests/engine/tiny_engine.h"
#include "tests/support/expect_bits.h"
#include "tests/support/model_fixture.h"

namespace exact {
namespace {

class EngineTest : public TinyEngineTest {
 protected:
  std::unique_ptr<Engine> make_engine(EngineLimits limits = {}, uint64_t weight_seed = 1) {
    if (limits.max_context == 0) limits.max_context = 256;
    auto engine =
        Engine::create(config_, *backend_, hash_slot(config_, *backend_, weight_seed), limits);
    EXPECT_TRUE(engine.is_ok()) << engine.status().to_string();
    return std::move(engine).value();
  }

  static GenerateRequest request(uint64_t id, int32_t max_new_tokens = 8) {
    GenerateRequest request;
    request.id = RequestId{id};
    request.prompt = {5, 6, 7, static_cast<int32_t>(id % 100)};
    request.max_new_tokens = max_new_tokens;
    request.sampling.seed = id;
    return request;
  }

  static StepReport run_all(Engine& engine) {
    StepReport all;
    while (engine.has_work()) {
      auto report = engine.step();
      EXPECT_TRUE(report.is_ok()) << report.status().to_string();
      if (!report.is_ok()) break;
      for (auto& sample : report->samples) all.samples.push_back(std::move(sample));
      for (auto& score : report->scores) all.scores.push_back(std::move(score));
    }
    return all;
  }

  void fill_update(Engine& engine, uint64_t weight_seed) {
    auto slot = engine.begin_update();
    ASSERT_TRUE(slot.is_ok()) << slot.status().to_string();
    const auto& table = (*slot)->table();
    for (size_t i = 0; i < table.size(); i++) {
      std::vector<uint16_t> values(static_cast<size_t>(table[i].rows * table[i].columns));
      hash_tensor(table[i], config_, weight_seed, values);
      ASSERT_TRUE((*slot)->append(i, std::as_bytes(std::span(values))).is_ok());
    }
    ASSERT_TRUE((*slot)->complete().is_ok());
  }

  std::vector<float> score_with_seed(uint64_t weight_seed, std::vector<int32_t> tokens) {
    auto engine = make_engine({}, weight_seed);
    EXPECT_TRUE(engine->submit(ScoreRequest{RequestId{1}, std::move(tokens)}).is_ok());
    return run_all(*engine).scores.at(0).logprobs;
  }
};

TEST_F(EngineTest, RefusesWhatItCantKeepAndNamesIt) {
  auto engine = make_engine();
  GenerateRequest bad = request(1);
  bad.prompt = {5, 128};
  const Status status = engine->submit(bad);
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_NE(status.message().find("prompt"), std::string::npos) << status.message();
  ASSERT_TRUE(engine->submit(request(2)).is_ok());
  EXPECT_EQ(engine->submit(request(2)).code(), Code::invalid) << "the id is in flight";
  EXPECT_EQ(engine->submit(ScoreRequest{RequestId{3}, {1}}).code(), Code::invalid);
  EXPECT_EQ(engine->submit(ScoreRequest{RequestId{3}, {1, 2}, 1001}).code(), Code::invalid);
}

TEST_F(EngineTest, AFullQueueIsExhaustedAndTakesNothing) {
  EngineLimits limits;
  limits.max_waiting = 3;
  auto engine = make_engine(limits);
  GenerateRequest group = request(1);
  group.n = 4;
  EXPECT_EQ(engine->submit(group).code(), Code::exhausted);
  EXPECT_FALSE(engine->has_work());
  group.n = 3;
  EXPECT_TRUE(engine->submit(group).is_ok());
  EXPECT_EQ(run_all(*engine).samples.size(), 3u);
}

TEST_F(EngineTest, LimitsThatCantHoldOneSequenceAreRefused) {
  EngineLimits limits;
  limits.max_context = 256;
  limits.page_size = 64;
  limits.page_count = 3;
  auto engine = Engine::create(config_, *backend_, hash_slot(config_, *backend_, 1), limits);
  ASSERT_FALSE(engine.is_ok());
  EXPECT_NE(engine.status().message().find("page_count"), std::string::npos);
}

TEST_F(EngineTest, ASampleEndsAtItsLengthOrWithItsStopIdKept) {
  auto engine = make_engine();
  ASSERT_TRUE(engine->submit(request(1, 12)).is_ok());
  const SampleResult whole = run_all(*engine).samples.at(0);
  ASSERT_EQ(whole.tokens.size(), 12u);
  EXPECT_EQ(whole.reason, FinishReason::length);
  EXPECT_EQ(whole.logprobs.size(), 12u);
  EXPECT_EQ(whole.processed_logprobs.size(), 12u);

  GenerateRequest stopped = request(1, 12);
  stopped.stop_ids = {whole.tokens[5]};
  ASSERT_TRUE(engine->submit(stopped).is_ok());
  const SampleResult cut = run_all(*engine).samples.at(0);
  const auto first = std::find(whole.tokens.begin(), whole.tokens.end(), whole.tokens[5]);
  EXPECT_EQ(cut.reason, FinishReason::stop);
  EXPECT_EQ(cut.tokens, std::vector<int32_t>(whole.tokens.begin(), first + 1));
}

TEST_F(EngineTest, ScoreEqualsGenerateBitForBit) {
  auto engine = make_engine();
  GenerateRequest generate = request(1, 40);
  ASSERT_TRUE(engine->submit(generate).is_ok());
  const SampleResult sample = run_all(*engine).samples.at(0);
  std::vector<int32_t> text = generate.prompt;
  text.insert(text.end(), sample.tokens.begin(), sample.tokens.end());
  ASSERT_TRUE(engine->submit(ScoreRequest{RequestId{2}, text}).is_ok());
  const ScoreResult score = run_all(*engine).scores.at(0);
  EXPECT_BITS_EQ(std::span<const float>(sample.logprobs),
                 std::span<const float>(score.logprobs).subspan(generate.prompt.size() - 1),
                 "score of generated tokens");
  EXPECT_BITS_EQ(std::span<const float>(sample.logprobs),
                 std::span<const float>(sample.processed_logprobs),
                 "processed at temperature 1 without filters");
}

TEST_F(EngineTest, CancelReturnsPagesAtOnceAndAnswers) {
  auto engine = make_engine();
  GenerateRequest group = request(1, 100);
  group.n = 3;
  ASSERT_TRUE(engine->submit(group).is_ok());
  for (int i = 0; i < 5; i++) ASSERT_TRUE(engine->step().is_ok());
  EXPECT_LT(engine->status().pages_free, engine->status().pages_total);
  ASSERT_TRUE(engine->cancel(RequestId{1}).is_ok());
  EXPECT_EQ(engine->status().pages_free, engine->status().pages_total);
  EXPECT_EQ(engine->cancel(RequestId{1}).code(), Code::not_found);
  const StepReport report = run_all(*engine);
  ASSERT_EQ(report.samples.size(), 3u);
  for (const SampleResult& sample : report.samples) {
    EXPECT_EQ(sample.reason, FinishReason::cancelled);
    EXPECT_EQ(sample.tokens.size(), 5u);
  }
}

TEST_F(EngineTest, AnUpdateWithWaitLetsRunningSequencesFinishOnTheOldVersion) {
  EngineLimits limits;
  limits.max_running = 2;
  auto engine = make_engine(limits);
  for (uint64_t id = 1; id <= 4; id++) ASSERT_TRUE(engine->submit(request(id, 10)).is_ok());
  for (int i = 0; i < 3; i++) ASSERT_TRUE(engine->step().is_ok());
  fill_update(*engine, 2);
  ASSERT_TRUE(engine->commit_update(WeightVersion{7}, UpdatePolicy::wait).is_ok());
  EXPECT_TRUE(engine->update_pending());
  EXPECT_EQ(engine->begin_update().status().code(), Code::exhausted);
  for (const SampleResult& sample : run_all(*engine).samples) {
    ASSERT_EQ(sample.versions.size(), 1u);
    EXPECT_EQ(sample.versions[0].version.value, sample.request.value <= 2 ? 1u : 7u);
    std::vector<int32_t> text = request(sample.request.value).prompt;
    text.insert(text.end(), sample.tokens.begin(), sample.tokens.end());
    const auto score = score_with_seed(sample.request.value <= 2 ? 1 : 2, text);
    EXPECT_BITS_EQ(std::span<const float>(sample.logprobs), std::span(score).subspan(3),
                   "request " + std::to_string(sample.request.value));
  }
}

TEST_F(EngineTest, AnUpdateWithRecomputeGivesEachTokenTheBitsOfItsVersion) {
  auto engine = make_engine();
  ASSERT_TRUE(engine->submit(request(1, 20)).is_ok());
  uint64_t version = 1;
  StepReport done;
  while (engine->has_work()) {
    auto report = engine->step();
    ASSERT_TRUE(report.is_ok());
    for (auto& sample : report->samples) done.samples.push_back(std::move(sample));
    if (version < 5) {
      fill_update(*engine, ++version);
      ASSERT_TRUE(engine->commit_update(WeightVersion{version}, UpdatePolicy::recompute).is_ok());
    }
  }
  const SampleResult& sample = done.samples.at(0);
  ASSERT_EQ(sample.versions.size(), 5u);
  std::vector<int32_t> text = request(1).prompt;
  text.insert(text.end(), sample.tokens.begin(), sample.tokens.end());
  for (size_t span = 0; span < 5; span++) {
    const auto begin = static_cast<size_t>(sample.versions[span].begin);
    const size_t end =
        span + 1 < 5 ? static_cast<size_t>(sample.versions[span + 1].begin) : sample.tokens.size();
    EXPECT_EQ(sample.versions[span].version.value, span + 1);
    const auto score = score_with_seed(span + 1, text);
    EXPECT_BITS_EQ(std::span<const float>(sample.logprobs).subspan(begin, end - begin),
                   std::span<const float>(score).subspan(3 + begin, end - begin),
                   "version " + std::to_string(span + 1));
  }
}

TEST_F(EngineTest, AnUpdateWithAbortEndsRunningSequencesWithWhatTheyHave) {
  auto engine = make_engine();
  ASSERT_TRUE(engine->submit(request(1, 50)).is_ok());
  for (int i = 0; i < 4; i++) ASSERT_TRUE(engine->step().is_ok());
  fill_update(*engine, 2);
  ASSERT_TRUE(engine->commit_update(WeightVersion{2}, UpdatePolicy::abort).is_ok());
  const StepReport report = run_all(*engine);
  ASSERT_EQ(report.samples.size(), 1u);
  EXPECT_EQ(report.samples[0].reason, FinishReason::aborted);
  EXPECT_EQ(report.samples[0].tokens.size(), 4u);
  EXPECT_EQ(engine->status().version.value, 2u);
}

TEST_F(EngineTest, AnIncompleteOrOldUpdateLeavesTheLiveVersion) {
  auto engine = make_engine();
  const Digest128 before = engine->status().weights_digest;
  ASSERT_TRUE(engine->begin_update().is_ok());
  EXPECT_EQ(engine->commit_update(WeightVersion{2}, UpdatePolicy::wait).code(), Code::invalid);
  fill_update(*engine, 2);
  EXPECT_EQ(engine->commit_update(WeightVersion{1}, UpdatePolicy::wait).code(), Code::invalid);
  fill_update(*engine, 2);
  engine->abort_update();
  EXPECT_EQ(engine->status().weights_digest, before);
  EXPECT_EQ(engine->status().version.value, 1u);
  fill_update(*engine, 2);
  ASSERT_TRUE(engine->commit_update(WeightVersion{2}, UpdatePolicy::wait).is_ok());
  run_all(*engine);
  EXPECT_NE(engine->status().weights_digest, before);
  EXPECT_EQ(engine->status().version.value, 2u);
}

}  // namespace
}  // namespace exact
