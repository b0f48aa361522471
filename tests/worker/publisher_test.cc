// The publisher: its plan alone, its protocol against a scripted worker, and whole updates against
// a real one while rollouts are in flight.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ipc/weight_shm.h"
#include "tests/worker/bridge_fixture.h"
#include "tests/worker/scripted_worker.h"
#include "trainer_bridge/publish_plan.h"
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
              tensor_digest(std::as_bytes(std::span(tensors[t].values))).to_hex());
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

TEST(Publisher, SaysWhatEachPhaseTookAndByWhichTransport) {
  ScriptedUpdate update;
  const auto report = update.publish({});
  ASSERT_TRUE(report.is_ok()) << report.status().to_string();
  EXPECT_EQ(report->transport, ipc::WeightTransport::shm);
  EXPECT_GT(report->begin_time.count(), 0);
  EXPECT_GT(report->transfer_time.count(), 0);
  EXPECT_GT(report->verify_time.count(), 0);
  EXPECT_GT(report->commit_time.count(), 0);
}

TEST(Publisher, SendsNothingByATransportThatCanNotTakeIt) {
  const auto refused = [](const std::function<void(ScriptedUpdate&, bridge::PushOptions&)>& ask) {
    ScriptedUpdate update;
    bridge::PushOptions options;
    ask(update, options);
    const auto report = update.publish(options);
    EXPECT_FALSE(report.is_ok());
    EXPECT_EQ(report.status().code(), Code::unsupported);
    EXPECT_EQ(update.script.segment, nullptr);  // no message of an update was sent
    return report.status().message();
  };
  using Transport = ipc::WeightTransport;
  for (const Transport transport : {Transport::cuda_ipc, Transport::nccl, Transport::disk}) {
    const std::string message = refused(
        [&](ScriptedUpdate&, bridge::PushOptions& options) { options.transport = transport; });
    EXPECT_NE(message.find("does not offer transport"), std::string::npos) << message;
  }
  const std::string message = refused(
      [](ScriptedUpdate& update, bridge::PushOptions&) { update.views[0].on_device = true; });
  EXPECT_NE(message.find("'" + random_tensors(9)[0].name + "' lies on a GPU"), std::string::npos)
      << message;
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

}  // namespace
}  // namespace exact::bridge_tests
