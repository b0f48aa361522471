// Weight updates that fail, in each state and in each way: the live version serves on, nothing is
// left behind, and the next update works.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/expect_bits.h"
#include "tests/worker/update_steps.h"
#include "tests/worker/worker_fixture.h"
#include "trainer_bridge/scorer.h"

namespace exact::worker_tests {
namespace {

using worker::ServerLimits;

class WeightUpdate : public testing::Test {
 protected:
  void start(const ServerLimits& limits = {}) {
    worker_.emplace(limits);
    client_.emplace(worker_->endpoint());
    client_->hello();
    first_digest_ = client_->status().weights_digest;
    first_scores_ = scores();
  }
  UpdateSteps update(uint64_t version, uint64_t bucket_bytes = 10'000,
                     UpdatePolicy policy = UpdatePolicy::recompute) {
    return UpdateSteps(*client_, worker_->config(), version, bucket_bytes, policy);
  }
  std::vector<float> scores() {
    const auto reply = client_->call<ipc::ScoreReply>(ipc::Score{{1, 2, 3, 4, 5, 6}});
    EXPECT_TRUE(reply.is_ok()) << reply.status().to_string();
    return reply.is_ok() ? reply->logprobs : std::vector<float>();
  }
  // The old version serves on and is bit for bit what it was; then a good update goes through.
  void expect_unharmed(const std::string& segment_name, uint64_t next_version = 3) {
    const ipc::StatusReply status = client_->status();
    EXPECT_EQ(status.update_state, "idle");
    EXPECT_EQ(status.weight_version, 1u);
    EXPECT_EQ(status.weights_digest, first_digest_);
    EXPECT_BITS_EQ(scores(), first_scores_, "after a failed update");
    if (!segment_name.empty()) {
      EXPECT_FALSE(segment_exists(segment_name)) << segment_name;
    }
    UpdateSteps next = update(next_version);
    const auto committed = next.run();
    ASSERT_TRUE(committed.is_ok()) << committed.status().to_string();
    EXPECT_EQ(committed->weight_version, next_version);
    EXPECT_NE(committed->weights_digest, first_digest_);
    EXPECT_FALSE(segment_exists(next.ready.segment_name)) << next.ready.segment_name;
  }
  // What begin() says to a manifest that `spoil` has changed.
  Status begin_with(const std::function<void(ipc::UpdateBegin&)>& spoil) {
    UpdateSteps steps = update(2);
    spoil(steps.message);
    return steps.begin().status();
  }

  std::optional<LocalWorker> worker_;
  std::optional<RawClient> client_;
  std::string first_digest_;
  std::vector<float> first_scores_;
};

TEST_F(WeightUpdate, IsLiveWithTheDigestAndBitsOfItsWeights) {
  start();
  for (const uint64_t bucket_bytes : {1ull << 30, 1ull << 16, 4097ull, 999ull}) {
    const uint64_t version = client_->status().weight_version + 1;
    const auto committed = update(version, bucket_bytes).run();
    ASSERT_TRUE(committed.is_ok()) << committed.status().to_string();
    EXPECT_EQ(committed->weight_version, version);
    const auto weights = bridge_tests::hash_tensors(worker_->config(), version);
    auto scorer =
        bridge::Scorer::from_tensors(worker_->config(), bridge::named_tensors(weights), {1, 256});
    ASSERT_TRUE(scorer.is_ok()) << scorer.status().to_string();
    EXPECT_EQ(committed->weights_digest, (*scorer)->weights_digest());
    const auto expected = (*scorer)->score(std::vector<int32_t>{1, 2, 3, 4, 5, 6});
    ASSERT_TRUE(expected.is_ok()) << expected.status().to_string();
    EXPECT_BITS_EQ(scores(), *expected, "bucket_bytes " + std::to_string(bucket_bytes));
  }
}

TEST_F(WeightUpdate, ManifestMustNameEveryTensorOnceAndRightly) {
  start();
  using Begin = ipc::UpdateBegin;
  const std::string norm = "model.norm.weight";
  const auto tensor = [](Begin& begin, const std::string& name) -> ipc::ManifestTensor& {
    const auto found = std::find_if(begin.tensors.begin(), begin.tensors.end(),
                                    [&](const auto& each) { return each.name == name; });
    EXPECT_NE(found, begin.tensors.end());
    return *found;
  };
  expect_error(begin_with([&](Begin& begin) {
                 std::erase_if(begin.tensors, [&](const auto& each) { return each.name == norm; });
               }),
               Code::invalid, "'" + norm + "' is missing");
  expect_error(begin_with([&](Begin& begin) { begin.tensors.push_back(tensor(begin, norm)); }),
               Code::invalid, "'" + norm + "' is listed twice");
  expect_error(begin_with([&](Begin& begin) { tensor(begin, norm).name = "model.nrom.weight"; }),
               Code::invalid, "'model.nrom.weight' is not one of this model's");
  expect_error(begin_with([&](Begin& begin) { tensor(begin, norm).shape = {65}; }), Code::invalid,
               "'" + norm + "' has shape (65); this model has (64)");
  expect_error(begin_with([&](Begin& begin) {
                 tensor(begin, norm).shape = {1, 64};
               }),
               Code::invalid, "(1, 64)");
  expect_error(begin_with([&](Begin& begin) { tensor(begin, norm).dtype = "F32"; }), Code::invalid,
               "'F32'; it must be BF16");
  expect_error(begin_with([&](Begin& begin) { tensor(begin, norm).digest = "xyz"; }), Code::invalid,
               "32 lower-case hex digits");
  expect_error(begin_with([&](Begin& begin) { begin.tensors.clear(); }), Code::invalid,
               "is missing");
  expect_unharmed("");
}

TEST_F(WeightUpdate, BeginIsRefusedByTheFieldThatIsWrong) {
  start();
  using Begin = ipc::UpdateBegin;
  expect_error(begin_with([](Begin& begin) { begin.weight_version = 1; }), Code::invalid,
               "not above the live version 1");
  expect_error(begin_with([](Begin& begin) { begin.weight_version = 0; }), Code::invalid,
               "weight_version");
  expect_error(begin_with([](Begin& begin) { begin.policy = 3; }), Code::invalid, "policy is 3");
  expect_error(begin_with([](Begin& begin) { begin.bucket_bytes = 0; }), Code::invalid,
               "bucket_bytes");
  expect_error(begin_with([](Begin& begin) { begin.contract_id = std::string(32, '0'); }),
               Code::contract_mismatch, "contract_id");
  expect_unharmed("");
}

TEST_F(WeightUpdate, WrongDigestDropsTheUpdate) {
  start();
  UpdateSteps steps = update(2);
  for (auto& tensor : steps.message.tensors) tensor.digest = std::string(32, '0');
  ASSERT_TRUE(steps.begin().is_ok());
  Status status;
  for (uint64_t i = 0; i < steps.bucket_count() && status.is_ok(); i++) status = steps.send(i);
  expect_error(status, Code::corrupt, "digest");
  expect_error(status, Code::corrupt, "version 1 serves on");
  expect_unharmed(steps.ready.segment_name);
}

TEST_F(WeightUpdate, BucketOutOfOrderDropsTheUpdate) {
  start();
  for (const uint64_t wrong : {uint64_t{2}, uint64_t{0}, uint64_t{1} << 60}) {
    UpdateSteps steps = update(2);
    ASSERT_TRUE(steps.begin().is_ok());
    ASSERT_GT(steps.bucket_count(), 3u);
    ASSERT_TRUE(steps.send(0).is_ok());
    expect_error(steps.announce(wrong).status(), Code::invalid, "send buckets in order");
    EXPECT_FALSE(segment_exists(steps.ready.segment_name));
    expect_error(steps.send(1), Code::invalid, "not an open update");
  }
  expect_unharmed("");
}

TEST_F(WeightUpdate, BucketAfterTheLastDropsTheUpdate) {
  start();
  UpdateSteps steps = update(2);
  ASSERT_TRUE(steps.begin().is_ok());
  ASSERT_TRUE(steps.send_all().is_ok());
  expect_error(steps.announce(steps.bucket_count()).status(), Code::invalid, "after the last");
  expect_unharmed(steps.ready.segment_name);
}

TEST_F(WeightUpdate, CommitBeforeTheLastBucketDropsTheUpdate) {
  start();
  UpdateSteps steps = update(2);
  ASSERT_TRUE(steps.begin().is_ok());
  ASSERT_TRUE(steps.send(0).is_ok());
  expect_error(steps.commit().status(), Code::invalid, "commit came after 1 of");
  expect_unharmed(steps.ready.segment_name);
}

TEST_F(WeightUpdate, BucketThatIsNotInTheSegmentDropsTheUpdate) {
  start();
  const std::vector<std::function<void(UpdateSteps&)>> lies = {
      [](UpdateSteps&) {},                                          // nothing was written
      [](UpdateSteps& steps) { steps.segment().begin_bucket(0); },  // begun, never sealed
      [](UpdateSteps& steps) {                                      // too short
        steps.segment().begin_bucket(0);
        steps.segment().finish_bucket(0, steps.payload_bytes(0) - 1);
      },
      [](UpdateSteps& steps) { steps.write(2); },  // another bucket in this half
      [](UpdateSteps& steps) {                     // written again after it was sealed
        const auto room = steps.segment().begin_bucket(0);
        steps.write(0);
        room[17] ^= std::byte{1};
      },
  };
  for (size_t i = 0; i < lies.size(); i++) {
    SCOPED_TRACE("lie " + std::to_string(i));
    UpdateSteps steps = update(2);
    ASSERT_TRUE(steps.begin().is_ok());
    lies[i](steps);
    EXPECT_EQ(steps.announce(0).status().code(), Code::corrupt);
    EXPECT_FALSE(segment_exists(steps.ready.segment_name));
  }
  expect_unharmed("");
}

TEST_F(WeightUpdate, AbortDropsTheUpdate) {
  start();
  UpdateSteps steps = update(2);
  ASSERT_TRUE(steps.begin().is_ok());
  ASSERT_TRUE(steps.send(0).is_ok());
  const auto aborted = client_->call<ipc::UpdateAborted>(ipc::UpdateAbort{steps.ready.session});
  ASSERT_TRUE(aborted.is_ok()) << aborted.status().to_string();
  EXPECT_EQ(aborted->weight_version, 1u);
  expect_unharmed(steps.ready.segment_name);
}

TEST_F(WeightUpdate, SilenceDropsTheUpdate) {
  start({.update_timeout_ms = 500});
  UpdateSteps steps = update(2);
  ASSERT_TRUE(steps.begin().is_ok());
  EXPECT_EQ(steps.ready.timeout_ms, 500);
  ASSERT_TRUE(steps.send(0).is_ok());
  ASSERT_TRUE(eventually([&] { return client_->status().update_state == "idle"; }));
  expect_error(steps.send(1), Code::invalid, "not an open update");
  EXPECT_FALSE(segment_exists(steps.ready.segment_name));
  EXPECT_BITS_EQ(scores(), first_scores_, "after a timeout");
}

TEST_F(WeightUpdate, MessageOfAnotherSessionOrClientDoesNoHarm) {
  start();
  RawClient other(worker_->endpoint());
  other.hello();
  UpdateSteps steps = update(2);
  ASSERT_TRUE(steps.begin().is_ok());
  const uint64_t session = steps.ready.session;
  ASSERT_TRUE(steps.send(0).is_ok());
  for (RawClient* sender : {&*client_, &other}) {
    const uint64_t said = sender == &other ? session : session + 1;
    expect_error(sender->call<ipc::UpdateBucketDone>(ipc::UpdateBucket{said, 1}).status(),
                 Code::invalid, "not an open update of this client");
    expect_error(sender->call<ipc::UpdateCommitted>(ipc::UpdateCommit{said}).status(),
                 Code::invalid, "not an open update of this client");
    expect_error(sender->call<ipc::UpdateAborted>(ipc::UpdateAbort{said}).status(), Code::invalid,
                 "not an open update of this client");
  }
  UpdateSteps rival(other, worker_->config(), 3);
  expect_error(rival.begin().status(), Code::exhausted, "another client is under way");
  expect_error(update(3).begin().status(), Code::exhausted, "this client is under way");
  for (uint64_t i = 1; i < steps.bucket_count(); i++) ASSERT_TRUE(steps.send(i).is_ok());
  const auto committed = steps.commit();
  ASSERT_TRUE(committed.is_ok()) << committed.status().to_string();
  EXPECT_EQ(committed->weight_version, 2u);
  EXPECT_TRUE(rival.run().is_ok());
}

TEST_F(WeightUpdate, SenderGoneWhileReceivingDropsTheUpdate) {
  start({.heartbeat_ms = 150});
  std::string segment;
  for (const uint64_t sent : {0, 1, 2}) {
    RawClient doomed(worker_->endpoint());
    doomed.hello();
    UpdateSteps steps(doomed, worker_->config(), 2);
    ASSERT_TRUE(steps.begin().is_ok());
    for (uint64_t i = 0; i < sent; i++) ASSERT_TRUE(steps.send(i).is_ok());
    segment = steps.ready.segment_name;
    EXPECT_TRUE(segment_exists(segment));
    ASSERT_TRUE(eventually([&] { return client_->status().update_state == "idle"; }));
    EXPECT_FALSE(segment_exists(segment));
  }
  expect_unharmed(segment);
}

TEST_F(WeightUpdate, CommitStandsWhenItsSenderIsGone) {
  start({.heartbeat_ms = 500});
  RawClient busy(worker_->endpoint());
  busy.hello();
  uint64_t running = 0;
  {
    RawClient doomed(worker_->endpoint());
    doomed.hello();
    UpdateSteps steps(doomed, worker_->config(), 2, 10'000, UpdatePolicy::wait);
    ASSERT_TRUE(steps.begin().is_ok());
    ASSERT_TRUE(steps.send_all().is_ok());
    running = worker_->post_and_hold(busy, generate({1, 2, 3}, 250, 1, 4));
    steps.post_commit();
    worker_->backend().slow_down(milliseconds(8));  // so that its sender is dropped meanwhile
    worker_->release();
  }
  EXPECT_TRUE(eventually([&] {
    if (!busy.call<ipc::Pong>(ipc::Ping{}).is_ok()) return true;
    const ipc::StatusReply status = client_->status();
    return status.clients == 2 && status.update_state == "committing";
  }));
  worker_->backend().slow_down(milliseconds(0));
  EXPECT_TRUE(busy.take<ipc::GenerateReply>(running).is_ok());
  EXPECT_TRUE(eventually([&] { return client_->status().weight_version == 2; }));
  EXPECT_EQ(client_->status().update_state, "idle");
  EXPECT_TRUE(update(3).run().is_ok());
}

TEST_F(WeightUpdate, CommittedUpdateWaitsForRunningRequestsAndCantBeAborted) {
  start({.heartbeat_ms = 60'000});  // both clients are silent while 64 samples run, however slowly
  RawClient busy(worker_->endpoint());
  busy.hello();
  UpdateSteps steps = update(2, 10'000, UpdatePolicy::wait);
  ASSERT_TRUE(steps.begin().is_ok());
  ASSERT_TRUE(steps.send_all().is_ok());
  const uint64_t running = worker_->post_and_hold(busy, generate({1, 2, 3}, 250, 1, 64));
  const uint64_t commit = steps.post_commit();
  const uint64_t abort = client_->post(ipc::UpdateAbort{steps.ready.session});
  ASSERT_TRUE(client_->send_frames(ipc::encode(ipc::Ping{}, commit)).is_ok());
  worker_->release();
  expect_error(client_->take<ipc::UpdateAborted>(abort).status(), Code::invalid, "committed");
  expect_error(client_->take<ipc::Pong>(commit).status(), Code::invalid, "in flight already");
  EXPECT_FALSE(segment_exists(steps.ready.segment_name));
  const auto committed = client_->take<ipc::UpdateCommitted>(commit);
  ASSERT_TRUE(committed.is_ok()) << committed.status().to_string();
  EXPECT_EQ(committed->weight_version, 2u);
  const auto reply = busy.take<ipc::GenerateReply>(running);
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  ASSERT_EQ(reply->completions.size(), 64u);
  for (const auto& completion : reply->completions) {
    ASSERT_EQ(completion.versions.size(), 1u);
    EXPECT_EQ(completion.versions[0].weight_version, 1u);
    EXPECT_EQ(completion.tokens.size(), 250u);
  }
}

TEST_F(WeightUpdate, BucketsAreNoLargerThanTheWorkerAllows) {
  start({.max_bucket_bytes = 8192});
  UpdateSteps steps = update(2, 1 << 30);
  ASSERT_TRUE(steps.begin().is_ok());
  EXPECT_EQ(steps.ready.bucket_bytes, 8192u);
  ASSERT_TRUE(steps.send_all().is_ok());
  EXPECT_TRUE(steps.commit().is_ok());
}

TEST_F(WeightUpdate, DrainLetsAnOpenUpdateFinish) {
  start();
  UpdateSteps steps = update(2);
  ASSERT_TRUE(steps.begin().is_ok());
  worker_->server().drain();
  ASSERT_TRUE(eventually([&] { return client_->status().draining; }));
  ASSERT_TRUE(steps.send_all().is_ok());
  const auto committed = steps.commit();
  ASSERT_TRUE(committed.is_ok()) << committed.status().to_string();
  EXPECT_EQ(committed->weight_version, 2u);
  EXPECT_TRUE(worker_->join().is_ok());
}

TEST_F(WeightUpdate, AbortPolicyEndsRunningRequestsWithWhatTheyHave) {
  start();
  RawClient busy(worker_->endpoint());
  busy.hello();
  UpdateSteps steps = update(2, 10'000, UpdatePolicy::abort);
  ASSERT_TRUE(steps.begin().is_ok());
  ASSERT_TRUE(steps.send_all().is_ok());
  const uint64_t running = worker_->post_and_hold(busy, generate({1, 2, 3}, 250, 1, 64));
  const uint64_t commit = steps.post_commit();
  worker_->release();
  const auto committed = client_->take<ipc::UpdateCommitted>(commit);
  ASSERT_TRUE(committed.is_ok()) << committed.status().to_string();
  const auto reply = busy.take<ipc::GenerateReply>(running);
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  ASSERT_EQ(reply->completions.size(), 64u);
  for (const auto& completion : reply->completions) {
    EXPECT_EQ(completion.finish_reason, static_cast<uint8_t>(FinishReason::aborted));
    EXPECT_FALSE(completion.error.empty());
    EXPECT_LT(completion.tokens.size(), 250u);
    EXPECT_EQ(completion.tokens.size(), completion.logprobs.size());
  }
  EXPECT_TRUE(busy.call<ipc::GenerateReply>(generate({1, 2, 3}, 4, 1)).is_ok());
}

}  // namespace
}  // namespace exact::worker_tests
