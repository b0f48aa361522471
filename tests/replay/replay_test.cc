#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <set>
#include <string>

#include "kernels/cpu/cpu_backend.h"
#include "replay/replayer.h"
#include "tests/replay/journal_maker.h"
#include "tests/support/random_data.h"
#include "tests/support/temporary_directory.h"

namespace exact {
namespace {

using namespace replay;

constexpr uint64_t kAll = std::numeric_limits<uint64_t>::max();

ModelConfig tiny_config() {
  auto config = parse_config(R"({"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "vocab_size": 256, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "bfloat16",
    "tie_word_embeddings": true, "attention_bias": false, "eos_token_id": 7})");
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  return *config;
}

class Replay : public testing::Test {
 protected:
  void SetUp() override {
    auto backend = make_cpu_backend();
    ASSERT_TRUE(backend.is_ok()) << backend.status().to_string();
    backend_ = std::move(*backend);
    const MakerOptions options{directory_.path() + "/journal", test_seed(), 120, 4};
    const Status made = make_test_journal(options, config_, *backend_);
    ASSERT_TRUE(made.is_ok()) << made.to_string();
    auto run = read_run(options.directory, 0, kAll);
    ASSERT_TRUE(run.is_ok()) << run.status().to_string();
    run_ = std::move(*run);
    ASSERT_TRUE(run_.damage.empty());
  }

  Report replay(Mode mode, uint64_t seed = test_seed()) {
    const Plan plan = make_plan(run_.samples);
    HashWeights weights(config_, 4);
    auto report = run_plan(plan, run_.samples, mode, seed, config_, *backend_, weights, nullptr);
    EXPECT_TRUE(report.is_ok()) << report.status().to_string();
    return report.is_ok() ? std::move(*report) : Report();
  }

  // A sample of one version, some tokens and no masks, to be tampered with.
  RecordedSample& plain_sample() {
    for (RecordedSample& sample : run_.samples) {
      const ipc::Completion& made = sample.record.completion;
      if (made.tokens.size() > 6 && made.versions.size() == 1 && !sample.record.request.masked &&
          sample.record.request.forced_ids.empty() && sample.record.request.allowed_ids.empty()) {
        return sample;
      }
    }
    ADD_FAILURE() << "no such sample";
    return run_.samples.front();
  }

  TemporaryDirectory directory_;
  ModelConfig config_ = tiny_config();
  std::unique_ptr<Backend> backend_;
  RecordedRun run_;
};

std::string first_finding(const Report& report) {
  if (report.findings.empty()) return "no difference";
  const Finding& finding = report.findings.front();
  return "record " + std::to_string(finding.record_id) + ": " + describe(finding.difference);
}

TEST_F(Replay, EverySampleHasItsBitsAgainInEachMode) {
  std::set<uint64_t> versions;
  size_t crossed = 0, ended_early = 0, stopped = 0, masked = 0, grouped = 0;
  for (const RecordedSample& sample : run_.samples) {
    const ipc::Completion& made = sample.record.completion;
    for (const auto& span : made.versions) versions.insert(span.weight_version);
    crossed += made.versions.size() > 1;
    ended_early += made.finish_reason > 1;
    stopped += made.finish_reason == 1;
    masked += sample.record.request.masked;
    grouped += made.sample_index > 0;
  }
  EXPECT_EQ(versions.size(), 4u);
  EXPECT_GT(crossed, 0u);
  EXPECT_GT(ended_early, 0u);
  EXPECT_GT(stopped, 0u);
  EXPECT_GT(masked, 0u);
  EXPECT_GT(grouped, 0u);
  const Plan plan = make_plan(run_.samples);
  for (const Skipped& skipped : plan.skipped) {
    EXPECT_EQ(skipped.why, "it ended before its first token");
  }
  for (const Mode mode : {Mode::alone, Mode::batches, Mode::rerun}) {
    const Report report = replay(mode);
    EXPECT_TRUE(report.findings.empty())
        << mode_name(mode) << ": " << first_finding(report) << ", EXACT_TEST_SEED=" << test_seed();
    EXPECT_EQ(report.pieces, plan.pieces.size());
    EXPECT_EQ(static_cast<int64_t>(report.tokens), plan.token_count);
    EXPECT_EQ(report.recorded_digest, report.replayed_digest);
  }
}

TEST_F(Replay, OneBitOfALogprobIsFoundAndLaidToTheArithmetic) {
  RecordedSample& sample = plain_sample();
  float& value = sample.record.completion.logprobs[4];
  value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) ^ 1u);
  const Report report = replay(Mode::batches);
  ASSERT_EQ(report.findings.size(), 1u) << first_finding(report);
  const Finding& finding = report.findings.front();
  EXPECT_EQ(finding.record_id, sample.record_id);
  EXPECT_EQ(finding.difference.field, "logprobs");
  EXPECT_EQ(finding.difference.token, 4);
  EXPECT_EQ(finding.difference.recorded ^ finding.difference.replayed, 1u);
  ASSERT_TRUE(finding.located);
  EXPECT_FALSE(finding.located->arithmetic_agrees);
  EXPECT_EQ(cause_of(finding), "arithmetic");
  EXPECT_EQ(finding.located->first->token, 4);
  EXPECT_NE(report.recorded_digest, report.replayed_digest);
}

// Another seed draws other ids; forced, they have the log-probabilities that were recorded.
TEST_F(Replay, AnotherDrawIsLaidToTheSampling) {
  RecordedSample& sample = plain_sample();
  sample.record.request.seed += 1;
  sample.record.request.temperature = 1.7f;
  sample.record.request.top_k = 0;
  sample.record.request.top_p = 1.0f;
  sample.record.request.min_p = 0.0f;
  sample.record.request.kept_set = false;
  sample.record.completion.kept_counts.clear();
  sample.record.completion.kept_ids.clear();
  const Report report = replay(Mode::alone);
  ASSERT_EQ(report.findings.size(), 1u) << first_finding(report);
  EXPECT_EQ(report.findings.front().record_id, sample.record_id);
  EXPECT_EQ(report.findings.front().difference.field, "tokens");
  ASSERT_TRUE(report.findings.front().located);
  EXPECT_TRUE(report.findings.front().located->arithmetic_agrees);
  EXPECT_EQ(cause_of(report.findings.front()), "sampling");
}

TEST_F(Replay, WeightsThatNobodyHasAreNamed) {
  const Plan plan = make_plan(run_.samples);
  HashWeights weights(config_, 1);
  const auto report =
      run_plan(plan, run_.samples, Mode::rerun, 1, config_, *backend_, weights, nullptr);
  ASSERT_TRUE(report.is_ok()) << report.status().to_string();
  EXPECT_EQ(report->missing.size(), 3u);
  EXPECT_EQ(report->pieces + report->missing_pieces, plan.pieces.size());
}

TEST_F(Replay, AnotherContractIsRefused) {
  plain_sample().contract_id = std::string(32, '0');
  HashWeights weights(config_, 4);
  const auto report = run_plan(make_plan(run_.samples), run_.samples, Mode::alone, 1, config_,
                               *backend_, weights, nullptr);
  ASSERT_FALSE(report.is_ok());
  EXPECT_EQ(report.status().code(), Code::contract_mismatch);
}

TEST_F(Replay, WhatCrossedAnUpdateThatKeepsKvIsMadeUpToIt) {
  const auto crossed = std::ranges::find_if(run_.samples, [](const RecordedSample& sample) {
    return sample.record.completion.versions.size() > 1;
  });
  ASSERT_NE(crossed, run_.samples.end());
  crossed->policies[0] = 3;
  const Plan kept = make_plan(std::span(&*crossed, 1));
  ASSERT_EQ(kept.pieces.size(), 1u);
  EXPECT_EQ(kept.pieces[0].end, crossed->record.completion.versions[1].begin);
  ASSERT_EQ(kept.skipped.size(), 1u);
  EXPECT_NE(kept.skipped[0].why.find("policy 3"), std::string::npos) << kept.skipped[0].why;
  crossed->policies[0] = kUnknownPolicy;
  const Plan unknown = make_plan(std::span(&*crossed, 1));
  ASSERT_EQ(unknown.skipped.size(), 1u);
  EXPECT_NE(unknown.skipped[0].why.find("does not hold the update"), std::string::npos);
}

TEST_F(Replay, ARecordThatContradictsItselfIsSkippedByTheFieldsName) {
  RecordedSample sample = plain_sample();
  sample.record.completion.logprobs.pop_back();
  const Plan plan = make_plan(std::span(&sample, 1));
  EXPECT_TRUE(plan.pieces.empty());
  ASSERT_EQ(plan.skipped.size(), 1u);
  EXPECT_EQ(plan.skipped[0].why, "the record contradicts itself: logprobs");
}

// A batch that changes a raw log-probability which is right alone: the fault that replay is for.
TEST(ReplayCompare, WhatIsRightAloneAndWrongInABatchIsLaidToItsNeighbours) {
  Finding finding;
  finding.difference.field = "logprobs";
  EXPECT_EQ(cause_of(finding), "");
  finding.located = Located{true, std::nullopt};
  EXPECT_EQ(cause_of(finding), "neighbours");
  finding.difference.field = "tokens";
  EXPECT_EQ(cause_of(finding), "sampling");
}

TEST(ReplayCompare, UlpsCountFloatsBetween) {
  EXPECT_EQ(ulps_between(0x3f800000u, 0x3f800001u), 1);
  EXPECT_EQ(ulps_between(0x80000000u, 0x00000000u), 0);
  EXPECT_EQ(ulps_between(0x80000001u, 0x00000001u), 2);
}

}  // namespace
}  // namespace exact
