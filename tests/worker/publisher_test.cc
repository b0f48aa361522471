// The publisher: its plan alone, its protocol against a scripted worker, and whole updates against
// a real one while rollouts are in flight.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "ipc/weight_shm.h"
#include "tests/worker/bridge_fixture.h"
#include "tests/worker/scripted_worker.h"
#include "trainer_bridge/completion_check.h"
#include "trainer_bridge/publish_plan.h"
#include "trainer_bridge/scorer.h"
#include "trainer_bridge/weight_publisher.h"

namespace exact::bridge_tests {
namespace {

using bridge::HostTensor;
using bridge::NamedTensor;
using bridge::PublishPlan;

std::vector<HostTensor> random_tensors(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<HostTensor> tensors(1 + random() % 12);
  for (size_t t = 0; t < tensors.size(); t++) {
    tensors[t].name = "tensor." + std::to_string(t);
    tensors[t].shape = {static_cast<int64_t>(1 + random() % 9),
                        static_cast<int64_t>(1 + random() % 40)};
    tensors[t].values.resize(static_cast<size_t>(tensors[t].shape[0] * tensors[t].shape[1]));
    for (uint16_t& value : tensors[t].values) value = static_cast<uint16_t>(random());
  }
  return tensors;
}

TEST(PublishPlan, BucketsInOrderAreTheTensorsInOrder) {
  for (uint64_t seed = 1; seed <= 300; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const auto tensors = random_tensors(seed);
    const auto views = bridge::named_tensors(tensors);
    std::vector<std::byte> expected;
    for (const NamedTensor& view : views) {
      expected.insert(expected.end(), view.bytes.begin(), view.bytes.end());
    }
    const uint64_t bucket_bytes = 1 + (seed * 7919) % (expected.size() + 20);
    auto plan = PublishPlan::make(views, bucket_bytes);
    ASSERT_TRUE(plan.is_ok()) << plan.status().to_string();
    ASSERT_EQ(plan->stream_bytes(), expected.size());
    std::vector<std::byte> stream;
    std::vector<std::byte> bucket(bucket_bytes);
    for (uint64_t i = 0; i < plan->bucket_count(); i++) {
      const uint64_t bytes = plan->payload_bytes(i);
      ASSERT_GT(bytes, 0u);
      ASSERT_LE(bytes, bucket_bytes);
      if (i + 1 < plan->bucket_count()) {
        ASSERT_EQ(bytes, bucket_bytes);
      }
      plan->fill(i, bucket);
      stream.insert(stream.end(), bucket.begin(), bucket.begin() + static_cast<ptrdiff_t>(bytes));
    }
    ASSERT_TRUE(stream == expected) << "bucket_bytes " << bucket_bytes;
  }
}

TEST(PublishPlan, ManifestNamesEveryTensorWithItsDigest) {
  const auto tensors = random_tensors(5);
  const auto manifest = bridge::make_manifest(bridge::named_tensors(tensors));
  ASSERT_TRUE(manifest.is_ok()) << manifest.status().to_string();
  ASSERT_EQ(manifest->size(), tensors.size());
  for (size_t t = 0; t < tensors.size(); t++) {
    EXPECT_EQ((*manifest)[t].name, tensors[t].name);
    EXPECT_EQ((*manifest)[t].dtype, "BF16");
    EXPECT_EQ((*manifest)[t].shape, tensors[t].shape);
    EXPECT_EQ((*manifest)[t].digest,
              digest128(std::as_bytes(std::span(tensors[t].values))).to_hex());
  }
}

TEST(PublishPlan, TensorsThatCanNotBePublishedAreRefusedByName) {
  std::vector<uint16_t> values(6);
  const auto bytes = std::as_bytes(std::span(values));
  const auto refused = [](std::vector<NamedTensor> tensors) {
    const auto manifest = bridge::make_manifest(tensors);
    EXPECT_FALSE(manifest.is_ok());
    EXPECT_EQ(manifest.status().code(), Code::invalid);
    return manifest.status().message();
  };
  const auto expect_names = [](const std::string& message, const char* what) {
    EXPECT_NE(message.find("'w'"), std::string::npos) << message;
    EXPECT_NE(message.find(what), std::string::npos) << message;
  };
  expect_names(refused({{"w", {2, 4}, bytes}}), "12 bytes");
  expect_names(refused({{"w", {-2, -3}, bytes}}), "not above 0");
  expect_names(refused({{"w", {0}, {}}}), "not above 0");
  expect_names(refused({{"w", {}, bytes}}), "no dimensions");
  expect_names(refused({{"w", {int64_t{1} << 40, int64_t{1} << 40}, bytes}}), "larger");
  expect_names(refused({{"w", {6}, bytes}, {"w", {6}, bytes}}), "twice");
  EXPECT_NE(refused({{"", {6}, bytes}}).find("no name"), std::string::npos);
  EXPECT_NE(refused({}).find("no tensor"), std::string::npos);
  EXPECT_FALSE(PublishPlan::make({}, 0).is_ok());
}

// ---- against a script that plays the worker's half of the protocol
struct UpdateScript {
  std::unique_ptr<ipc::WeightSegment> segment;
  uint64_t bucket_bytes = 64;
  uint64_t stream_bytes = 0;
  uint64_t refuse_bucket = UINT64_MAX;
  bool refuse_commit = false;
  std::atomic<int> aborts{0};
  std::vector<std::byte> received;
  static constexpr uint64_t kSession = 0xfeedbeef;

  bool operator()(ScriptedWorker& worker, const ScriptedWorker::Message& message) {
    const std::string& peer = message.peer;
    const uint64_t id = message.header.request_id;
    switch (message.header.type) {
      case ipc::MessageType::update_begin: {
        auto made = ipc::WeightSegment::create(kSession, bucket_bytes);
        EXPECT_TRUE(made.is_ok()) << made.status().to_string();
        segment = std::move(*made);
        ipc::UpdateReady ready;
        ready.session = kSession;
        ready.segment_name = segment->name();
        ready.segment_bytes = segment->bytes();
        ready.bucket_bytes = bucket_bytes;
        worker.answer(peer, id, ready);
        return true;
      }
      case ipc::MessageType::update_bucket: {
        const auto bucket = message.as<ipc::UpdateBucket>();
        EXPECT_EQ(bucket.session, kSession);
        if (bucket.index == refuse_bucket) {
          worker.refuse(peer, id, Code::corrupt, "that bucket is broken");
          return true;
        }
        const uint64_t begin = bucket.index * bucket_bytes;
        const auto payload =
            segment->bucket(bucket.index, std::min(bucket_bytes, stream_bytes - begin));
        EXPECT_TRUE(payload.is_ok()) << payload.status().to_string();
        if (payload.is_ok()) received.insert(received.end(), payload->begin(), payload->end());
        worker.answer(peer, id, ipc::UpdateBucketDone{kSession, bucket.index});
        return true;
      }
      case ipc::MessageType::update_commit:
        if (refuse_commit) {
          worker.refuse(peer, id, Code::invalid, "a tensor is missing");
        } else {
          worker.answer(peer, id, ipc::UpdateCommitted{8, "digest"});
        }
        return true;
      case ipc::MessageType::update_abort:
        aborts++;
        worker.answer(peer, id, ipc::UpdateAborted{7});
        return true;
      default:
        return false;
    }
  }
};

struct ScriptedUpdate {
  PrivateEndpoint endpoint;
  std::vector<HostTensor> tensors = random_tensors(9);
  std::vector<NamedTensor> views = bridge::named_tensors(tensors);
  UpdateScript script;
  Result<bridge::PublishReport> publish(bridge::PublishOptions options) {
    for (const NamedTensor& view : views) script.stream_bytes += view.bytes.size();
    ipc::HelloReply hello = ScriptedWorker::greeting();
    hello.max_message_bytes = 1 << 20;
    const ScriptedWorker worker(endpoint.name(), hello, std::ref(script));
    const auto client = connect(endpoint.name());
    options.version = 8;
    return bridge::publish(*client, views, options);
  }
};

TEST(Publisher, SendsEveryByteOnceThroughTwoHalves) {
  ScriptedUpdate update;
  std::vector<uint64_t> progress;
  bridge::PublishOptions options;
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, update.script.stream_bytes);
    progress.push_back(done);
  };
  const auto report = update.publish(options);
  ASSERT_TRUE(report.is_ok()) << report.status().to_string();
  EXPECT_EQ(report->version, 8u);
  EXPECT_EQ(report->weights_digest, "digest");
  EXPECT_EQ(report->bytes, update.script.stream_bytes);
  EXPECT_EQ(update.script.aborts, 0);

  std::vector<std::byte> expected;
  for (const NamedTensor& view : update.views) {
    expected.insert(expected.end(), view.bytes.begin(), view.bytes.end());
  }
  EXPECT_TRUE(update.script.received == expected);
  ASSERT_EQ(progress.size(), (expected.size() + 63) / 64);
  EXPECT_TRUE(std::is_sorted(progress.begin(), progress.end()));
  EXPECT_EQ(progress.back(), expected.size());
}

TEST(Publisher, RefusedBucketAbortsAndKeepsTheFirstError) {
  for (const uint64_t index : {0, 1, 5}) {
    ScriptedUpdate update;
    update.script.refuse_bucket = index;
    const auto report = update.publish({});
    ASSERT_FALSE(report.is_ok());
    EXPECT_EQ(report.status().code(), Code::corrupt);
    EXPECT_EQ(report.status().message(), "that bucket is broken");
    EXPECT_EQ(update.script.aborts, 1);
  }
}

TEST(Publisher, RefusedCommitAborts) {
  ScriptedUpdate update;
  update.script.refuse_commit = true;
  const auto report = update.publish({});
  ASSERT_FALSE(report.is_ok());
  EXPECT_EQ(report.status().message(), "a tensor is missing");
  EXPECT_EQ(update.script.aborts, 1);
}

// ---- against a real worker
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

TEST(Publisher, PublishedWeightsAreTheTrainersOwn) {
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

TEST(Publisher, AnyErrorLeavesTheOldVersionServingAndTheNextUpdateWorks) {
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
