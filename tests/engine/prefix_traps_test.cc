// What went wrong elsewhere with caches of prefixes, groups and priorities, each as a case of its
// own. The random mixes are every_feature_test.cc's.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/engine/random_load.h"
#include "tests/engine/rich_requests.h"
#include "tests/support/expect_bits.h"

namespace exact {
namespace {

EngineLimits small_limits(bool reuse = true) {
  EngineLimits limits;
  limits.max_context = 128;
  limits.page_size = 16;
  limits.page_count = 64;
  limits.prefix_reuse = reuse;
  return limits;
}

class PrefixTraps : public testing::Test {
 protected:
  LoadedEngine engine(const EngineLimits& limits, uint64_t weights = 1) {
    return LoadedEngine(config_, {"cpu", {best_cpu_isa(), 1}, {}}, limits, weights);
  }

  GenerateRequest request(uint64_t id, int32_t prompt_size, int32_t max_new_tokens = 6) {
    GenerateRequest request;
    request.id = RequestId{id};
    for (int32_t i = 0; i < prompt_size; i++) request.prompt.push_back((i * 11 + i / 7) % 40);
    request.max_new_tokens = max_new_tokens;
    request.sampling.seed = 1000;
    request.ignore_eos = true;
    return request;
  }

  static StepReport run(LoadedEngine& engine, const GenerateRequest& request) {
    EXPECT_TRUE(engine->submit(request).is_ok());
    StepReport report = engine.run_all();
    std::ranges::sort(report.samples, {}, &SampleResult::sample_index);
    return report;
  }
  StepReport run_cold(const GenerateRequest& request, uint64_t weights = 1) {
    LoadedEngine cold = engine(small_limits(false), weights);
    return run(cold, request);
  }

  static void expect_same(const SampleResult& got, const SampleResult& want,
                          const std::string& what) {
    EXPECT_BITS_EQ(got.tokens, want.tokens, "ids, " + what);
    EXPECT_BITS_EQ(got.logprobs, want.logprobs, "raw, " + what);
    EXPECT_BITS_EQ(got.processed_logprobs, want.processed_logprobs, "processed, " + what);
    EXPECT_BITS_EQ(got.prompt_logprobs, want.prompt_logprobs, "prompt, " + what);
  }

  ModelConfig config_ = rich_config();
};

TEST_F(PrefixTraps, AWarmPrefixCacheGivesTheBitsOfAColdOne) {
  LoadedEngine warm = engine(small_limits());
  EXPECT_EQ(run(warm, request(1, 60, 40)).reused_rows, 0);
  for (const int32_t size : {1, 15, 16, 17, 31, 32, 33, 48, 49, 60, 64}) {
    const GenerateRequest again = request(2, size);
    const StepReport got = run(warm, again);
    // The last token is computed whatever is found. From 60 on the text is what was drawn first.
    EXPECT_EQ(got.reused_rows, std::min((size - 1) / 16 * 16, 48)) << size;
    expect_same(got.samples.at(0), run_cold(again).samples.at(0),
                "a prompt of " + std::to_string(size));
  }
}

TEST_F(PrefixTraps, WhatASampleDrewIsFoundByAPromptThatHoldsIt) {
  LoadedEngine warm = engine(small_limits());
  GenerateRequest longer = request(1, 20, 30);
  const SampleResult first = run(warm, longer).samples.at(0);
  longer.prompt.insert(longer.prompt.end(), first.tokens.begin(), first.tokens.end());
  const StepReport got = run(warm, longer);
  EXPECT_EQ(got.reused_rows, 48);
  expect_same(got.samples.at(0), run_cold(longer).samples.at(0), "a second turn");
}

TEST_F(PrefixTraps, PromptLogprobsAreComputedNotReadFromWhatTheCacheHolds) {
  LoadedEngine warm = engine(small_limits());
  run(warm, request(1, 60));
  GenerateRequest asks = request(2, 60);
  asks.report.prompt_logprobs = true;
  asks.n = 3;
  const StepReport got = run(warm, asks);
  EXPECT_EQ(got.reused_rows, 0);
  EXPECT_EQ(got.prefill_rows, 60);
  const StepReport want = run_cold(asks);
  ASSERT_TRUE(warm->submit(ScoreRequest{RequestId{3}, asks.prompt}).is_ok());
  const auto scores = warm.run_all().scores.at(0).logprobs;
  ASSERT_EQ(got.samples.size(), 3u);
  for (size_t i = 0; i < 3; i++) {
    ASSERT_EQ(got.samples[i].prompt_logprobs.size(), 59u);
    expect_same(got.samples[i], want.samples[i], "sample " + std::to_string(i));
    EXPECT_BITS_EQ(got.samples[i].prompt_logprobs, scores, "the scorer's");
  }
}

TEST_F(PrefixTraps, ASeedIsOfARequestNotOfABatch) {
  GenerateRequest one = request(1, 20, 20), two = request(2, 20, 20);
  two.prompt[3] = 39;
  LoadedEngine both = engine(small_limits());
  ASSERT_TRUE(both->submit(one).is_ok());
  ASSERT_TRUE(both->submit(two).is_ok());
  StepReport got = both.run_all();
  std::ranges::sort(got.samples, {}, [](const SampleResult& s) { return s.request.value; });
  EXPECT_NE(got.samples.at(0).tokens, got.samples.at(1).tokens) << "two prompts with one seed";
  expect_same(got.samples[0], run_cold(one).samples.at(0), "one");
  expect_same(got.samples[1], run_cold(two).samples.at(0), "two");
}

TEST_F(PrefixTraps, AfterAWeightUpdateNoOldPageIsReused) {
  for (const UpdatePolicy policy :
       {UpdatePolicy::wait, UpdatePolicy::recompute, UpdatePolicy::abort}) {
    LoadedEngine warm = engine(small_limits());
    run(warm, request(1, 60));
    EXPECT_EQ(run(warm, request(2, 60)).reused_rows, 48);
    warm.update(WeightVersion{2}, 2, policy);
    const StepReport got = run(warm, request(3, 60));
    EXPECT_EQ(got.reused_rows, 0);
    expect_same(got.samples.at(0), run_cold(request(3, 60), 2).samples.at(0), "new weights");
    EXPECT_EQ(run(warm, request(4, 60)).reused_rows, 48) << "what the new ones computed is kept";
  }
}

TEST_F(PrefixTraps, AGroupComputesItsPromptOnceAndCopiesThePageItSplitsIn) {
  for (const int32_t size : {32, 37}) {
    GenerateRequest group = request(1, size);
    group.n = 4;
    LoadedEngine together = engine(small_limits(false));
    const StepReport got = run(together, group);
    EXPECT_EQ(got.prefill_rows, size);
    EXPECT_EQ(got.decode_rows, 4 * (group.max_new_tokens - 1));
    EXPECT_EQ(together->status().pages_copied, size % 16 == 0 ? 0u : 3u);
    EXPECT_EQ(together->status().pages_free, 64);
  }
}

TEST_F(PrefixTraps, AGroupLargerThanTheBatchFindsItsPromptAgain) {
  GenerateRequest group = request(1, 40, 5);
  group.n = 9;
  EngineLimits few = small_limits();
  few.max_running = 2;
  LoadedEngine narrow = engine(few);
  const StepReport got = run(narrow, group), want = run_cold(group);
  ASSERT_EQ(got.samples.size(), 9u);
  for (size_t i = 0; i < 9; i++) {
    expect_same(got.samples[i], want.samples[i], "sample " + std::to_string(i));
  }
  EXPECT_GE(got.reused_rows, 7 * 32);
}

TEST_F(PrefixTraps, AGroupWhoseFirstSampleEndsAtOnceGoesOn) {
  GenerateRequest group = request(1, 40, 5);
  group.n = 3;
  const StepReport whole = run_cold(group);
  group.stop_ids = {whole.samples[0].tokens[0]};
  const StepReport want = run_cold(group);
  EXPECT_EQ(want.samples.at(0).tokens.size(), 1u);
  LoadedEngine warm = engine(small_limits());
  run(warm, request(2, 40));
  const StepReport got = run(warm, group);
  for (size_t i = 0; i < 3; i++) expect_same(got.samples.at(i), want.samples[i], "a sample");
}

TEST_F(PrefixTraps, AHigherPriorityTakesThePlaceAndTheLowerOneLosesNoBit) {
  for (const int64_t swap_bytes : {int64_t{0}, int64_t{1} << 20}) {
    EngineLimits one_place = small_limits(false);
    one_place.max_running = 1;
    one_place.swap_bytes = swap_bytes;
    one_place.row_cost_bytes = 1 << 20;
    LoadedEngine narrow = engine(one_place);
    const GenerateRequest low = request(1, 40, 12);
    GenerateRequest high = request(2, 33, 4);
    high.priority = 1;
    ASSERT_TRUE(narrow->submit(low).is_ok());
    StepReport all;
    for (int i = 0; i < 5; i++) ASSERT_TRUE(narrow.step_into(all));
    ASSERT_TRUE(narrow->submit(high).is_ok());
    while (narrow->has_work()) ASSERT_TRUE(narrow.step_into(all));
    EXPECT_EQ(all.preempted, swap_bytes == 0 ? 1 : 0);
    EXPECT_EQ(all.swapped_out, swap_bytes == 0 ? 0 : 1);
    EXPECT_EQ(all.swapped_in, all.swapped_out);
    EXPECT_EQ(all.prefill_rows, swap_bytes == 0 ? 40 + 33 + 45 : 40 + 33);
    ASSERT_EQ(all.samples.size(), 2u);
    EXPECT_EQ(all.samples[0].request.value, 2u);
    expect_same(all.samples[0], run_cold(high).samples.at(0), "the higher");
    expect_same(all.samples[1], run_cold(low).samples.at(0), "the lower");
  }
}

TEST_F(PrefixTraps, CancelGivesBackPagesInTheCacheAndInHostMemory) {
  EngineLimits one_place = small_limits(false);
  one_place.max_running = 1;
  one_place.swap_bytes = 1 << 20;
  one_place.row_cost_bytes = 1 << 20;
  LoadedEngine narrow = engine(one_place);
  GenerateRequest high = request(2, 33, 4);
  high.priority = 1;
  ASSERT_TRUE(narrow->submit(request(1, 40, 12)).is_ok());
  StepReport all;
  ASSERT_TRUE(narrow.step_into(all));
  ASSERT_TRUE(narrow->submit(high).is_ok());
  ASSERT_TRUE(narrow.step_into(all));
  ASSERT_EQ(all.swapped_out, 1);
  ASSERT_TRUE(narrow->cancel(RequestId{1}).is_ok());
  ASSERT_TRUE(narrow->cancel(RequestId{2}).is_ok());
  EXPECT_EQ(narrow->status().pages_free, 64);
  EXPECT_TRUE(narrow->check_integrity().is_ok());
  EXPECT_EQ(narrow.run_all().samples.size(), 2u);
}

}  // namespace
}  // namespace exact
