// Whole updates of a real worker: the trainer's own bits arrive, errors harm nothing, and
// completions in flight during a push have the bits of the version that made each token.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/worker/bridge_fixture.h"
#include "trainer_bridge/completion_check.h"
#include "trainer_bridge/scorer.h"
#include "trainer_bridge/weight_publisher.h"

namespace exact::bridge_tests {
namespace {

using bridge::HostTensor;

struct LiveUpdate {
  explicit LiveUpdate(const EngineLimits& limits = {.max_context = 256})
      : worker(config, 1, endpoint.name(), limits) {}

  PrivateEndpoint endpoint;
  ModelConfig config = tiny_config();
  InProcessWorker worker;
  std::unique_ptr<bridge::Client> client = connect(endpoint.name());

  Result<bridge::PublishReport> publish(const std::vector<HostTensor>& tensors, uint64_t version,
                                        UpdatePolicy policy, uint64_t bucket_bytes = 10'007) {
    bridge::PublishOptions options;
    options.version = version;
    options.policy = static_cast<uint8_t>(policy);
    options.bucket_bytes = bucket_bytes;
    return bridge::publish(*client, bridge::named_tensors(tensors), options);
  }
  std::unique_ptr<bridge::Scorer> scorer(const std::vector<HostTensor>& tensors) const {
    auto made = bridge::Scorer::from_tensors(config, bridge::named_tensors(tensors), {1, 256});
    EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    return std::move(*made);
  }
};

TEST(PublisherWithWorker, PublishedWeightsAreTheTrainersOwn) {
  LiveUpdate live;
  const auto tensors = hash_tensors(live.config, 2);
  const auto scorer = live.scorer(tensors);
  for (const uint64_t bucket_bytes : {uint64_t{1} << 30, uint64_t{4096}, uint64_t{7'777}}) {
    const uint64_t version = live.client->status()->weight_version + 1;
    const auto report = live.publish(tensors, version, UpdatePolicy::wait, bucket_bytes);
    ASSERT_TRUE(report.is_ok()) << report.status().to_string();
    EXPECT_EQ(report->version, version);
    EXPECT_EQ(report->weights_digest, scorer->weights_digest());
    EXPECT_EQ(live.client->status()->weights_digest, scorer->weights_digest());
  }
  const std::vector<int32_t> text{5, 4, 3, 2, 1, 0, 250, 17};
  const auto worker = live.client->score(text);
  const auto trainer = scorer->score(text);
  ASSERT_TRUE(worker.is_ok() && trainer.is_ok());
  EXPECT_EQ(worker->logprobs, *trainer);
}

TEST(PublisherWithWorker, AnyErrorLeavesTheOldVersionServingAndTheNextUpdateWorks) {
  LiveUpdate live;
  const std::string before = live.client->status()->weights_digest;
  const auto expect_old = [&](const Result<bridge::PublishReport>& report, const char* what) {
    ASSERT_FALSE(report.is_ok()) << what;
    EXPECT_NE(report.status().message().find(what), std::string::npos)
        << report.status().to_string();
    EXPECT_EQ(live.client->status()->weights_digest, before);
    EXPECT_EQ(live.client->status()->update_state, "idle");
  };
  auto tensors = hash_tensors(live.config, 3);
  expect_old(live.publish(tensors, 1, UpdatePolicy::wait), "not above the live version");

  const HostTensor last = tensors.back();
  tensors.pop_back();
  expect_old(live.publish(tensors, 2, UpdatePolicy::wait), last.name.c_str());
  tensors.push_back(last);
  tensors.back().name = "stranger.weight";
  expect_old(live.publish(tensors, 2, UpdatePolicy::wait), "stranger.weight");
  tensors.back() = last;
  EXPECT_TRUE(live.publish(tensors, 2, UpdatePolicy::wait).is_ok());
  EXPECT_EQ(live.client->status()->weight_version, 2u);
}

// The trainer loop in small: groups in flight across pushes, every token checked under the version
// that made it.
class PublishWhileServing : public testing::TestWithParam<UpdatePolicy> {};

TEST_P(PublishWhileServing, EveryTokenHasTheBitsOfItsVersion) {
  LiveUpdate live({.max_context = 256, .max_step_tokens = 1});  // slow: a push lands in the middle
  std::vector<std::unique_ptr<bridge::Scorer>> scorers;
  std::vector<bridge::ScoredVersion> versions;
  scorers.push_back(live.scorer(hash_tensors(live.config, 1)));
  versions.push_back({1, scorers.back().get()});
  uint64_t checked = 0, crossed = 0;
  for (uint64_t version = 2; version <= 6; version++) {
    const auto tensors = hash_tensors(live.config, version);
    scorers.push_back(live.scorer(tensors));
    versions.push_back({version, scorers.back().get()});
    ipc::Generate request;
    for (int32_t i = 0; i < 6; i++) request.prompt.push_back(static_cast<int32_t>(version) * 7 + i);
    request.n = 8;
    request.max_new_tokens = 240;
    request.seed = version;
    const auto id = live.client->submit(request);
    ASSERT_TRUE(id.is_ok()) << id.status().to_string();

    const auto report = live.publish(tensors, version, GetParam());
    ASSERT_TRUE(report.is_ok()) << report.status().to_string();
    ASSERT_EQ(report->weights_digest, scorers.back()->weights_digest());

    const auto reply = live.client->next_reply(std::chrono::seconds(30));
    ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
    ASSERT_TRUE(reply->error.is_ok()) << reply->error.to_string();
    ASSERT_EQ(reply->value.completions.size(), 8u);
    for (const ipc::Completion& completion : reply->value.completions) {
      crossed += completion.versions.size() > 1;
      if (GetParam() != UpdatePolicy::abort) {
        EXPECT_EQ(completion.tokens.size(), 240u);
      }
    }
    const auto check = bridge::check_completions(request.prompt, reply->value, versions);
    ASSERT_TRUE(check.is_ok()) << check.status().to_string();
    EXPECT_EQ(check->mismatches, 0u)
        << "seed " << version << ": " << check->first_difference->to_string();
    checked += check->logprobs_checked;

    // What comes after the commit is the new version's alone.
    request.max_new_tokens = 10;
    const auto after = live.client->generate(request);
    ASSERT_TRUE(after.is_ok()) << after.status().to_string();
    const auto only_new = std::span(versions).last(1);
    const auto fresh = bridge::check_completions(request.prompt, *after, only_new);
    ASSERT_TRUE(fresh.is_ok()) << fresh.status().to_string();
    EXPECT_EQ(fresh->logprobs_checked, 80u);
    EXPECT_EQ(fresh->mismatches, 0u);
  }
  EXPECT_GT(checked, 0u);
  if (GetParam() == UpdatePolicy::recompute) {
    EXPECT_GT(crossed, 0u) << "no completion was in flight at any push: nothing was shown";
  } else {
    EXPECT_EQ(crossed, 0u);
  }
}

std::string policy_name(const testing::TestParamInfo<UpdatePolicy>& info) {
  return info.param == UpdatePolicy::wait        ? "wait"
         : info.param == UpdatePolicy::recompute ? "recompute"
                                                 : "abort";
}
INSTANTIATE_TEST_SUITE_P(Policies, PublishWhileServing,
                         testing::Values(UpdatePolicy::wait, UpdatePolicy::recompute,
                                         UpdatePolicy::abort),
                         policy_name);

}  // namespace
}  // namespace exact::bridge_tests
