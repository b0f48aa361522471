// Requests in flight while weights change under them: every token names one version, and its
// log-probability is that version's, bit for bit.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "tests/worker/worker_fixture.h"
#include "trainer_bridge/completion_check.h"
#include "trainer_bridge/scorer.h"
#include "trainer_bridge/weight_publisher.h"

namespace exact::worker_tests {
namespace {

constexpr uint64_t kPushes = 20;

class UpdateInFlight : public testing::TestWithParam<UpdatePolicy> {
 protected:
  UpdateInFlight()
      : worker_({}, {.max_context = 512, .page_size = 16, .page_count = 100, .max_running = 6}),
        rollouts_(bridge_tests::connect(worker_.endpoint())),
        publisher_(bridge_tests::connect(worker_.endpoint())) {
    add_version(kFirstSeed);
  }

  void add_version(uint64_t version) {
    weights_ = bridge_tests::hash_tensors(worker_.config(), version);
    auto scorer = bridge::Scorer::from_tensors(worker_.config(), bridge::named_tensors(weights_),
                                               {.threads = 1, .max_context = 512});
    ASSERT_TRUE(scorer.is_ok()) << scorer.status().to_string();
    scorers_.push_back(std::move(*scorer));
    versions_.push_back({version, scorers_.back().get()});
  }
  void publish(uint64_t version) {
    add_version(version);
    bridge::PublishOptions options;
    options.version = version;
    options.policy = static_cast<uint8_t>(GetParam());
    options.bucket_bytes = 50'000;
    const auto report = bridge::publish(*publisher_, bridge::named_tensors(weights_), options);
    ASSERT_TRUE(report.is_ok()) << report.status().to_string();
    ASSERT_EQ(report->weights_digest, scorers_.back()->weights_digest());
  }
  void keep_busy() {
    while (rollouts_->in_flight() < 4) {
      const auto seed = static_cast<uint64_t>(submitted_++);
      const std::vector<int32_t> prompt{2, 4, 6, static_cast<int32_t>(seed % 100)};
      const auto id = rollouts_->submit(generate(prompt, 300, seed, 2));
      ASSERT_TRUE(id.is_ok()) << id.status().to_string();
      prompts_[*id] = prompt;
    }
  }
  // Checks the replies that have come; waits for the first of them up to `timeout`.
  void collect(milliseconds timeout) {
    while (rollouts_->in_flight() > 0) {
      const auto reply = rollouts_->next_reply(timeout);
      if (reply.status().code() == Code::timeout) return;
      ASSERT_TRUE(reply.is_ok() && reply->error.is_ok())
          << reply.status().to_string() << reply->error.to_string();
      const auto check =
          bridge::check_completions(prompts_.at(reply->request_id), reply->value, versions_);
      ASSERT_TRUE(check.is_ok()) << check.status().to_string();
      ASSERT_EQ(check->mismatches, 0u) << check->first_difference->to_string();
      checked_ += check->logprobs_checked;
      for (const auto& completion : reply->value.completions) {
        ASSERT_EQ(completion.tokens.size(), 300u);
        most_versions_ = std::max(most_versions_, completion.versions.size());
      }
    }
  }

  LocalWorker worker_;
  std::unique_ptr<bridge::Client> rollouts_, publisher_;
  std::vector<bridge::HostTensor> weights_;
  std::vector<std::unique_ptr<bridge::Scorer>> scorers_;
  std::vector<bridge::ScoredVersion> versions_;
  std::map<uint64_t, std::vector<int32_t>> prompts_;
  int submitted_ = 0;
  uint64_t checked_ = 0;
  size_t most_versions_ = 0;
};

TEST_P(UpdateInFlight, EveryTokenHasTheBitsOfTheVersionItNames) {
  for (uint64_t version = 2; version < 2 + kPushes; version++) {
    ASSERT_NO_FATAL_FAILURE(keep_busy());
    ASSERT_NO_FATAL_FAILURE(publish(version));
    ASSERT_NO_FATAL_FAILURE(collect(milliseconds(1)));
  }
  while (rollouts_->in_flight() > 0) ASSERT_NO_FATAL_FAILURE(collect(milliseconds(20'000)));
  EXPECT_EQ(checked_, static_cast<uint64_t>(submitted_) * 2 * 300);
  const auto status = publisher_->status();
  ASSERT_TRUE(status.is_ok());
  EXPECT_EQ(status->weight_version, 1 + kPushes);
  if (GetParam() == UpdatePolicy::wait) {
    EXPECT_EQ(most_versions_, 1u);
  } else {
    EXPECT_GT(most_versions_, 1u) << "no request was in flight during a push";
  }
  std::cout << checked_ << " log-probabilities checked, " << most_versions_
            << " versions in one completion at most\n";
}

INSTANTIATE_TEST_SUITE_P(Policies, UpdateInFlight,
                         testing::Values(UpdatePolicy::wait, UpdatePolicy::recompute),
                         [](const auto& info) {
                           return info.param == UpdatePolicy::wait ? "Wait" : "Recompute";
                         });

}  // namespace
}  // namespace exact::worker_tests
