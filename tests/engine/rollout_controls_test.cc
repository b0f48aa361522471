// What a client may say of a rollout beside its sampling: where it ends, which tokens are forced,
// which may be drawn next; and what it is told while it runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "tests/engine/random_load.h"
#include "tests/engine/rich_requests.h"
#include "tests/support/expect_bits.h"

namespace exact {
namespace {

class RolloutControls : public testing::Test {
 protected:
  RolloutControls() : engine_(rich_config(), {"cpu", {best_cpu_isa(), 1}, {}}, limits(), 1) {}

  static EngineLimits limits() {
    EngineLimits limits;
    limits.max_context = 128;
    limits.page_size = 16;
    return limits;
  }

  static GenerateRequest request(uint64_t id, int32_t max_new_tokens = 20) {
    GenerateRequest request;
    request.id = RequestId{id};
    request.prompt = {3, 1, 4, 1, 5, 9, 2, 6};
    request.max_new_tokens = max_new_tokens;
    request.sampling.seed = id;
    request.ignore_eos = true;
    return request;
  }

  SampleResult run(const GenerateRequest& request) {
    const Status status = engine_->submit(request);
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    return engine_.run_all().samples.at(0);
  }

  StepReport step() {
    StepReport report;
    EXPECT_TRUE(engine_.step_into(report));
    return report;
  }

  LoadedEngine engine_;
};

TEST_F(RolloutControls, AStopSequenceEndsASampleWithAllOfItKept) {
  const SampleResult whole = run(request(1));
  GenerateRequest stopped = request(1);
  stopped.stop_sequences = {{whole.tokens[4], whole.tokens[5], whole.tokens[6]}};
  const SampleResult cut = run(stopped);
  EXPECT_EQ(cut.reason, FinishReason::stop);
  ASSERT_LE(cut.tokens.size(), 7u);
  EXPECT_TRUE(std::ranges::equal(std::span(cut.tokens).last(3), stopped.stop_sequences[0]));
  EXPECT_TRUE(std::equal(cut.tokens.begin(), cut.tokens.end(), whole.tokens.begin()));
}

TEST_F(RolloutControls, AStopSequenceThatBeginsInThePromptEndsNothing) {
  const SampleResult whole = run(request(1));
  GenerateRequest stopped = request(1);
  stopped.stop_sequences = {{stopped.prompt.back(), whole.tokens[0]}};
  const SampleResult same = run(stopped);
  EXPECT_GE(same.tokens.size(), 2u);
}

TEST_F(RolloutControls, AnEosIdEndsASampleUnlessItIsIgnored) {
  GenerateRequest ends = request(1, 100);
  ends.ignore_eos = false;
  const SampleResult whole = run(request(1, 100)), cut = run(ends);
  const auto first =
      std::ranges::find_if(whole.tokens, [](int32_t t) { return t == 5 || t == 39; });
  ASSERT_NE(first, whole.tokens.end()) << "a seed whose sample holds an end";
  EXPECT_EQ(cut.reason, FinishReason::stop);
  EXPECT_EQ(cut.tokens, std::vector<int32_t>(whole.tokens.begin(), first + 1));
}

TEST_F(RolloutControls, NoStopIdIsDrawnBeforeMinNewTokens) {
  GenerateRequest longer = request(1, 60);
  longer.stop_ids.resize(30);
  std::iota(longer.stop_ids.begin(), longer.stop_ids.end(), 0);
  longer.min_new_tokens = 25;
  const SampleResult sample = run(longer);
  EXPECT_EQ(sample.reason, FinishReason::stop);
  ASSERT_GT(sample.tokens.size(), 25u);
  for (size_t i = 0; i < 25; i++) EXPECT_GE(sample.tokens[i], 30) << "token " << i;
}

TEST_F(RolloutControls, ForcedTokensHaveTheirTrueLogProbabilities) {
  GenerateRequest forced = request(1, 12);
  forced.forced_ids = {7, 5, 7, 30};
  forced.ignore_eos = false;  // 5 would end it; not before the forced ones are there
  forced.min_new_tokens = 12;
  const SampleResult sample = run(forced);
  ASSERT_EQ(sample.tokens.size(), 12u);
  EXPECT_TRUE(
      std::equal(forced.forced_ids.begin(), forced.forced_ids.end(), sample.tokens.begin()));
  std::vector<int32_t> text = forced.prompt;
  text.insert(text.end(), sample.tokens.begin(), sample.tokens.end());
  ASSERT_TRUE(engine_->submit(ScoreRequest{RequestId{2}, text}).is_ok());
  const auto scores = engine_.run_all().scores.at(0).logprobs;
  EXPECT_BITS_EQ(sample.logprobs, std::span(scores).subspan(forced.prompt.size() - 1), "scores");
}

TEST_F(RolloutControls, StreamedTokensComeWithTheStepThatDrewThem) {
  GenerateRequest stream = request(1, 5);
  stream.stream = true;
  stream.n = 2;
  ASSERT_TRUE(engine_->submit(stream).is_ok());
  ASSERT_TRUE(engine_->submit(request(2, 5)).is_ok());
  for (int32_t i = 0; i < 5; i++) {
    const StepReport report = step();
    ASSERT_EQ(report.progress.size(), 2u) << "the other request does not stream";
    for (int32_t sample = 0; sample < 2; sample++) {
      const SampleProgress& part = report.progress[static_cast<size_t>(sample)];
      EXPECT_EQ(part.sample_index, sample);
      EXPECT_EQ(part.begin, i);
      EXPECT_EQ(part.tokens.size(), 1u);
      EXPECT_EQ(part.logprobs.size(), 1u);
      EXPECT_EQ(part.processed_logprobs.size(), 1u);
    }
  }
  EXPECT_FALSE(engine_->has_work());
}

TEST_F(RolloutControls, AMaskedSampleAsksOnceForEachTokenAndRunsNothingMeanwhile) {
  GenerateRequest masked = request(1, 4);
  masked.masked = true;
  ASSERT_TRUE(engine_->submit(masked).is_ok());
  std::vector<int32_t> drawn;
  for (int32_t index = 0; index < 4; index++) {
    StepReport report = step();
    if (index > 0) drawn.push_back(report.masks_wanted.at(0).previous_token);
    ASSERT_EQ(report.masks_wanted.size(), 1u);
    EXPECT_EQ(report.masks_wanted[0].index, index);
    EXPECT_EQ(report.prefill_rows + report.decode_rows, index == 0 ? 0 : index == 1 ? 8 : 1);
    // Nothing comes of steps until it is answered, and the engine says so.
    report = step();
    EXPECT_TRUE(report.masks_wanted.empty() && report.prefill_rows + report.decode_rows == 0);
    EXPECT_TRUE(engine_->has_work());
    EXPECT_FALSE(engine_->can_step());
    const std::vector<int32_t> ids = {2 * index + 1, 2 * index + 2, 30};
    EXPECT_EQ(engine_->allow(RequestId{1}, 0, index + 1, ids).code(), Code::not_found);
    EXPECT_EQ(engine_->allow(RequestId{1}, 1, index, ids).code(), Code::not_found);
    EXPECT_EQ(engine_->allow(RequestId{9}, 0, index, ids).code(), Code::not_found);
    EXPECT_EQ(engine_->allow(RequestId{1}, 0, index, {}).code(), Code::invalid);
    const std::vector<int32_t> falling = {4, 3}, outside = {40};
    EXPECT_EQ(engine_->allow(RequestId{1}, 0, index, falling).code(), Code::invalid);
    EXPECT_EQ(engine_->allow(RequestId{1}, 0, index, outside).code(), Code::invalid);
    ASSERT_TRUE(engine_->allow(RequestId{1}, 0, index, ids).is_ok());
    EXPECT_TRUE(engine_->can_step());
    EXPECT_EQ(engine_->allow(RequestId{1}, 0, index, ids).code(), Code::not_found);
  }
  const SampleResult sample = engine_.run_all().samples.at(0);
  ASSERT_EQ(sample.tokens.size(), 4u);
  for (int32_t i = 0; i < 4; i++) {
    const int32_t token = sample.tokens[static_cast<size_t>(i)];
    EXPECT_TRUE(token == 2 * i + 1 || token == 2 * i + 2 || token == 30) << token;
    EXPECT_TRUE(i == 3 || token == drawn[static_cast<size_t>(i)]);
  }
}

TEST_F(RolloutControls, AMaskOfAllIdsChangesNothing) {
  GenerateRequest masked = request(1, 6);
  const SampleResult plain = run(masked);
  masked.masked = true;
  ASSERT_TRUE(engine_->submit(masked).is_ok());
  std::vector<int32_t> all(40);
  std::iota(all.begin(), all.end(), 0);
  StepReport report;
  while (engine_->has_work()) {
    report.masks_wanted.clear();
    ASSERT_TRUE(engine_.step_into(report));
    for (const MaskWanted& mask : report.masks_wanted) {
      ASSERT_TRUE(engine_->allow(mask.request, mask.sample_index, mask.index, all).is_ok());
    }
  }
  EXPECT_BITS_EQ(report.samples.at(0).tokens, plain.tokens, "ids");
  EXPECT_BITS_EQ(report.samples.at(0).processed_logprobs, plain.processed_logprobs, "processed");
}

TEST_F(RolloutControls, AGroupsPromptStartsWhenEachSampleHasItsFirstMask) {
  GenerateRequest masked = request(1, 2);
  masked.masked = true;
  masked.n = 2;
  ASSERT_TRUE(engine_->submit(masked).is_ok());
  EXPECT_EQ(step().masks_wanted.size(), 2u);
  const std::vector<int32_t> low = {1, 2}, high = {31, 32};
  ASSERT_TRUE(engine_->allow(RequestId{1}, 1, 0, high).is_ok());
  EXPECT_EQ(step().prefill_rows, 0);
  ASSERT_TRUE(engine_->allow(RequestId{1}, 0, 0, low).is_ok());
  const StepReport drawn = step();
  EXPECT_EQ(drawn.prefill_rows, 8);
  ASSERT_EQ(drawn.masks_wanted.size(), 2u);
  EXPECT_LE(drawn.masks_wanted[0].previous_token, 2);
  EXPECT_GE(drawn.masks_wanted[1].previous_token, 31);
  ASSERT_TRUE(engine_->allow(RequestId{1}, 1, 1, high).is_ok());
  EXPECT_EQ(step().samples.at(0).sample_index, 1) << "one does not wait for the other";
  ASSERT_TRUE(engine_->cancel(RequestId{1}).is_ok());
  EXPECT_EQ(step().samples.at(0).reason, FinishReason::cancelled);
}

}  // namespace
}  // namespace exact
