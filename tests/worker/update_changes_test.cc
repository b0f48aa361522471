// Updates over the wire that change some tensors of a stated base, that keep running sequences, and
// that are written over the live weights.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/worker/bridge_fixture.h"
#include "trainer_bridge/scorer.h"
#include "trainer_bridge/weight_publisher.h"

namespace exact::bridge_tests {
namespace {

using bridge::HostTensor;
using bridge::NamedTensor;

struct ChangingWorker {
  explicit ChangingWorker(int32_t weight_slots = 2)
      : worker(config, 1, endpoint.name(), {.max_context = 256, .weight_slots = weight_slots}) {}

  // Version 2's tensors of layer 0 over version 1's others.
  void change_layer_0() {
    const auto next = hash_tensors(config, 2);
    for (size_t i = 0; i < tensors.size(); i++) {
      if (tensors[i].name.find("layers.0.") == std::string::npos) continue;
      tensors[i] = next[i];
      changed.push_back(next[i]);
    }
    ASSERT_FALSE(changed.empty());
    ASSERT_LT(changed.size(), tensors.size());
  }
  std::unique_ptr<bridge::Scorer> scorer() const {
    auto made = bridge::Scorer::from_tensors(config, bridge::named_tensors(tensors), {1, 256});
    EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    return std::move(*made);
  }
  Result<bridge::PushReport> push(const std::vector<HostTensor>& sent, uint64_t base,
                                  const std::string& digest, uint64_t version = 2) {
    bridge::PushOptions options;
    options.version = version;
    options.policy = static_cast<uint8_t>(UpdatePolicy::recompute);
    options.bucket_bytes = 10'007;
    options.base_version = base;
    options.weights_digest = digest;
    return bridge::push(*client, bridge::named_tensors(sent), options);
  }
  void expect_scores_of(bridge::Scorer& trainer) {
    const std::vector<int32_t> text{5, 4, 3, 2, 1, 0, 250, 17};
    const auto here = trainer.score(text);
    const auto there = client->score(text);
    ASSERT_TRUE(here.is_ok() && there.is_ok()) << there.status().to_string();
    EXPECT_EQ(there->logprobs, *here);
  }

  PrivateEndpoint endpoint;
  ModelConfig config = tiny_config();
  InProcessWorker worker;
  std::unique_ptr<bridge::Client> client = connect(endpoint.name());
  std::vector<HostTensor> tensors = hash_tensors(config, 1);
  std::vector<HostTensor> changed;
};

TEST(UpdateChanges, ChangedTensorsOverTheirBaseAreTheWholeModel) {
  for (const int32_t slots : {2, 1}) {
    SCOPED_TRACE("weight_slots " + std::to_string(slots));
    ChangingWorker live(slots);
    ASSERT_NO_FATAL_FAILURE(live.change_layer_0());
    const auto trainer = live.scorer();
    const auto report = live.push(live.changed, 1, trainer->weights_digest());
    ASSERT_TRUE(report.is_ok()) << report.status().to_string();
    EXPECT_EQ(report->weights_digest, trainer->weights_digest());
    live.expect_scores_of(*trainer);
  }
}

TEST(UpdateChanges, AnotherBaseOrAnotherWholeIsRefused) {
  ChangingWorker live;
  ASSERT_NO_FATAL_FAILURE(live.change_layer_0());
  const std::string before = live.client->status()->weights_digest;
  const auto wrong_base = live.push(live.changed, 7, "");
  ASSERT_FALSE(wrong_base.is_ok());
  EXPECT_EQ(wrong_base.status().code(), Code::invalid);
  EXPECT_NE(wrong_base.status().message().find("changes version 7"), std::string::npos)
      << wrong_base.status().to_string();
  const auto wrong_whole = live.push(live.changed, 1, before);
  ASSERT_FALSE(wrong_whole.is_ok());
  EXPECT_EQ(wrong_whole.status().code(), Code::corrupt);
  const auto no_base = live.push(live.changed, 0, "");
  ASSERT_FALSE(no_base.is_ok());
  EXPECT_NE(no_base.status().message().find("is missing"), std::string::npos);
  EXPECT_EQ(live.client->status()->weights_digest, before);
  EXPECT_EQ(live.client->status()->update_state, "idle");
  EXPECT_TRUE(live.push(live.changed, 1, live.scorer()->weights_digest()).is_ok());
}

TEST(UpdateChanges, FailedUpdateInPlacePoisonsUntilAWholeOneHasLanded) {
  ChangingWorker live(1);
  ASSERT_TRUE(live.client->worker().in_place_only);
  ASSERT_NO_FATAL_FAILURE(live.change_layer_0());
  const auto failed = live.push(live.tensors, 0, std::string(32, '0'));
  ASSERT_FALSE(failed.is_ok());
  EXPECT_NE(failed.status().message().find("the worker is poisoned"), std::string::npos)
      << failed.status().to_string();
  EXPECT_EQ(live.client->status()->health, "poisoned");
  EXPECT_FALSE(live.client->score({1, 2, 3}).is_ok());
  const auto delta = live.push(live.changed, 1, "");
  ASSERT_FALSE(delta.is_ok());
  EXPECT_NE(delta.status().message().find("push a whole update"), std::string::npos);
  const auto trainer = live.scorer();
  const auto healed = live.push(live.tensors, 0, trainer->weights_digest(), 3);
  ASSERT_TRUE(healed.is_ok()) << healed.status().to_string();
  EXPECT_EQ(live.client->status()->health, "serving");
  live.expect_scores_of(*trainer);
}

}  // namespace
}  // namespace exact::bridge_tests
