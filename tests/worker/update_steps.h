// update_steps.h owns a weight update one message at a time, so that a test can stop or lie at each
// step. Weights of version v are those of hash seed v.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ipc/weight_shm.h"
#include "tests/worker/worker_fixture.h"
#include "trainer_bridge/publish_plan.h"

namespace exact::worker_tests {

class UpdateSteps {
 public:
  UpdateSteps(RawClient& client, const ModelConfig& config, uint64_t version,
              uint64_t bucket_bytes = 10'000, UpdatePolicy policy = UpdatePolicy::recompute)
      : client_(client), tensors_(bridge_tests::hash_tensors(config, version)) {
    views_ = bridge::named_tensors(tensors_);
    auto manifest = bridge::make_manifest(views_);
    EXPECT_TRUE(manifest.is_ok()) << manifest.status().to_string();
    message.weight_version = version;
    message.contract_id = contract_id(config).to_hex();
    message.policy = static_cast<uint8_t>(policy);
    message.bucket_bytes = bucket_bytes;
    message.tensors = *manifest;
  }

  Result<ipc::UpdateReady> begin() {
    auto answer = client_.call<ipc::UpdateReady>(message);
    if (answer) open_segment(*answer);
    return answer;
  }
  // Fills and seals bucket `index`, without telling the worker.
  void write(uint64_t index) {
    plan_->fill(index, segment_->begin_bucket(index));
    segment_->finish_bucket(index, plan_->payload_bytes(index));
  }
  Result<ipc::UpdateBucketDone> announce(uint64_t index) {
    return client_.call<ipc::UpdateBucketDone>(ipc::UpdateBucket{ready.session, index});
  }
  Status send(uint64_t index) {
    write(index);
    return announce(index).status();
  }
  Status send_all() {
    for (uint64_t i = 0; i < bucket_count(); i++) EXACT_RETURN_IF_ERROR(send(i));
    return {};
  }
  uint64_t post_commit() { return client_.post(ipc::UpdateCommit{ready.session}); }
  Result<ipc::UpdateCommitted> commit() {
    return client_.call<ipc::UpdateCommitted>(ipc::UpdateCommit{ready.session});
  }
  Result<ipc::UpdateCommitted> run() {
    EXACT_RETURN_IF_ERROR(begin().status());
    EXACT_RETURN_IF_ERROR(send_all());
    return commit();
  }
  uint64_t bucket_count() const { return plan_->bucket_count(); }
  ipc::WeightSegmentWriter& segment() { return *segment_; }
  uint64_t payload_bytes(uint64_t index) const { return plan_->payload_bytes(index); }

  ipc::UpdateBegin message;  // what begin() sends
  ipc::UpdateReady ready;    // what it got

 private:
  void open_segment(const ipc::UpdateReady& answer) {
    ready = answer;
    auto plan = bridge::PublishPlan::make(views_, ready.bucket_bytes);
    EXPECT_TRUE(plan.is_ok()) << plan.status().to_string();
    plan_ = std::make_unique<bridge::PublishPlan>(std::move(*plan));
    auto segment = ipc::WeightSegmentWriter::open(ready.segment_name, ready.segment_bytes,
                                                  ready.session, ready.bucket_bytes);
    EXPECT_TRUE(segment.is_ok()) << segment.status().to_string();
    segment_ = std::move(*segment);
  }

  RawClient& client_;
  std::vector<bridge::HostTensor> tensors_;
  std::vector<bridge::NamedTensor> views_;
  std::unique_ptr<bridge::PublishPlan> plan_;
  std::unique_ptr<ipc::WeightSegmentWriter> segment_;
};

}  // namespace exact::worker_tests
