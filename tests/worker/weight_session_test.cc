// The update session with a transport whose buckets come when the test lets them: what is answered
// when, and to whom, above all when the update ends while buckets are on their way.
#include "worker/weight_session.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "tests/support/model_fixture.h"
#include "tests/worker/bridge_fixture.h"
#include "trainer_bridge/publish_plan.h"

namespace exact::worker_tests {
namespace {

using worker::UpdateState;
using worker::WeightChannels;
using worker::WeightSession;
using Answers = std::vector<WeightSession::BucketAnswer>;

struct Arrivals {  // shared by the test and its channel
  std::vector<std::byte> stream;
  uint64_t arrived = 0;  // buckets
  Status failure;
};

class LateChannel final : public ipc::WeightChannel {
 public:
  LateChannel(Arrivals& arrivals, worker::ChannelPlan plan)
      : arrivals_(arrivals), plan_(std::move(plan)) {}
  void describe(ipc::UpdateReady&) const override {}
  uint64_t bucket_count() const override { return plan_.buckets.bucket_count(); }
  Status expect(uint64_t index) override {
    expected_.push_back(index);
    return {};
  }
  Result<std::optional<ipc::BucketPieces>> poll() override {
    EXACT_RETURN_IF_ERROR(arrivals_.failure);
    if (expected_.empty() || expected_.front() >= arrivals_.arrived) {
      return std::optional<ipc::BucketPieces>();
    }
    const std::byte* data = arrivals_.stream.data() + plan_.buckets.range(expected_.front()).begin;
    ipc::BucketPieces bucket;
    for (const auto& slice : ipc::slices(plan_.buckets, plan_.tensor_bytes, expected_.front())) {
      bucket.pieces.push_back({slice.tensor_index, slice.tensor_offset, slice.bytes, data});
      data += slice.bytes;
    }
    return std::optional<ipc::BucketPieces>(std::move(bucket));
  }
  void release() override { expected_.pop_front(); }

 private:
  Arrivals& arrivals_;
  worker::ChannelPlan plan_;
  std::deque<uint64_t> expected_;
};

class LateBuckets : public testing::Test {
 protected:
  LateBuckets() : config_(bridge_tests::tiny_config()) {
    auto backend = make_cpu_backend({best_cpu_isa(), 1});
    EXPECT_TRUE(backend.is_ok()) << backend.status().to_string();
    backend_ = std::move(*backend);
    auto engine = Engine::create(config_, *backend_, hash_slot(config_, *backend_, 1),
                                 {.max_context = 256, .page_count = 20});
    EXPECT_TRUE(engine.is_ok()) << engine.status().to_string();
    engine_ = std::move(*engine);
    WeightChannels channels("");
    channels.offer(ipc::WeightTransport::nccl,
                   [this](const ipc::UpdateBegin&, const worker::ChannelPlan& plan) {
                     return Result<std::unique_ptr<ipc::WeightChannel>>(
                         std::make_unique<LateChannel>(arrivals_, plan));
                   });
    session_ = std::make_unique<WeightSession>(
        *engine_, worker::WeightSessionLimits{1 << 20, std::chrono::milliseconds(1000)},
        std::move(channels));
  }

  ipc::UpdateBegin message() {
    const auto tensors = bridge_tests::hash_tensors(config_, 2);
    const auto views = bridge::named_tensors(tensors);
    arrivals_ = {};
    for (const auto& view : views) {
      arrivals_.stream.insert(arrivals_.stream.end(), view.bytes.begin(), view.bytes.end());
    }
    ipc::UpdateBegin begin;
    begin.weight_version = 2;
    begin.contract_id = engine_->contract().to_hex();
    begin.transport = static_cast<uint8_t>(ipc::WeightTransport::nccl);
    begin.bucket_bytes = arrivals_.stream.size() / 3;
    begin.tensors = *bridge::make_manifest(views);
    return begin;
  }
  void begin() { begin(message()); }
  void begin(const ipc::UpdateBegin& begin) {
    const auto ready = session_->begin("trainer", begin, now_);
    ASSERT_TRUE(ready.is_ok()) << ready.status().to_string();
    id_ = ready->session;
    buckets_ = (arrivals_.stream.size() + ready->bucket_bytes - 1) / ready->bucket_bytes;
    ASSERT_GE(buckets_, 3u);
  }
  // Bucket i has request id 100 + i.
  Status announce(uint64_t index) {
    return session_->bucket("trainer", 100 + index, {id_, index}, now_);
  }
  Answers advance() {
    session_->advance(now_);
    return session_->take_answers();
  }
  void expect_done(const Answers& answers, uint64_t index) {
    ASSERT_EQ(answers.size(), 1u);
    EXPECT_EQ(answers[0].peer, "trainer");
    EXPECT_EQ(answers[0].request_id, 100 + index);
    ASSERT_TRUE(answers[0].done.is_ok()) << answers[0].done.status().to_string();
    EXPECT_EQ(answers[0].done->index, index);
  }
  // Buckets 0 and 1 end in an error of their own, once.
  void expect_both_refused(Code code, const std::string& sentence) {
    const Answers answers = session_->take_answers();
    ASSERT_EQ(answers.size(), 2u);
    for (uint64_t i = 0; i < 2; i++) {
      EXPECT_EQ(answers[i].request_id, 100 + i);
      ASSERT_FALSE(answers[i].done.is_ok());
      EXPECT_EQ(answers[i].done.status().code(), code);
      const std::string message = answers[i].done.status().message();
      EXPECT_NE(message.find(sentence), std::string::npos) << message;
      EXPECT_NE(message.find("version 1 serves on"), std::string::npos) << message;
    }
    EXPECT_EQ(session_->state(), UpdateState::idle);
    EXPECT_FALSE(session_->is_moving());
    EXPECT_TRUE(advance().empty());
    begin();  // and the next update may come
    EXPECT_EQ(session_->state(), UpdateState::receiving);
  }

  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Engine> engine_;
  Arrivals arrivals_;
  std::unique_ptr<WeightSession> session_;
  worker::Clock::time_point now_ = worker::Clock::now();
  uint64_t id_ = 0;
  uint64_t buckets_ = 0;
};

TEST_F(LateBuckets, AreAnsweredWhenTheyAreThereAndTheLastVerifiesAll) {
  ASSERT_NO_FATAL_FAILURE(begin());
  for (uint64_t i = 0; i < buckets_; i++) {
    ASSERT_TRUE(announce(i).is_ok());
    EXPECT_TRUE(advance().empty());
    EXPECT_TRUE(session_->is_moving());
    EXPECT_TRUE(session_->is_unanswered("trainer", 100 + i));
    EXPECT_FALSE(session_->is_unanswered("other", 100 + i));
    EXPECT_EQ(session_->state(), UpdateState::receiving);
    arrivals_.arrived = i + 1;
    expect_done(advance(), i);
    EXPECT_FALSE(session_->is_unanswered("trainer", 100 + i));
    EXPECT_FALSE(session_->is_moving());
  }
  EXPECT_EQ(session_->state(), UpdateState::verified);
  ASSERT_TRUE(session_->commit("trainer", 7, {id_}).is_ok());
  EXPECT_EQ(session_->state(), UpdateState::committing);
  EXPECT_TRUE(session_->is_unanswered("trainer", 7));
  const auto report = engine_->step();
  ASSERT_TRUE(report.is_ok()) << report.status().to_string();
  ASSERT_TRUE(report->committed.has_value());
  EXPECT_EQ(session_->take_commit().request_id, 7u);
  EXPECT_EQ(session_->state(), UpdateState::idle);
}

TEST_F(LateBuckets, TwoAreOnTheirWayAndAThirdIsOneTooMany) {
  ASSERT_NO_FATAL_FAILURE(begin());
  ASSERT_TRUE(announce(0).is_ok());
  ASSERT_TRUE(announce(1).is_ok());
  const Status third = announce(2);
  EXPECT_EQ(third.code(), Code::invalid);
  EXPECT_NE(third.message().find("bucket 2 came while 2 are unanswered"), std::string::npos);
  expect_both_refused(Code::invalid, "bucket 2 came while 2 are unanswered");
}

TEST_F(LateBuckets, EachHasItsAnswerHoweverTheUpdateEnds) {
  const auto announce_two = [&] {
    arrivals_ = {};
    if (session_->state() != UpdateState::idle) {
      ASSERT_TRUE(session_->abort("trainer", {id_}).is_ok());
    }
    begin();
    ASSERT_TRUE(announce(0).is_ok());
    ASSERT_TRUE(announce(1).is_ok());
  };
  ASSERT_NO_FATAL_FAILURE(announce_two());
  ASSERT_TRUE(session_->abort("trainer", {id_}).is_ok());
  expect_both_refused(Code::cancelled, "aborted by its client");

  ASSERT_NO_FATAL_FAILURE(announce_two());
  EXPECT_FALSE(session_->commit("trainer", 7, {id_}).is_ok());
  expect_both_refused(Code::invalid, "commit came after 0 of");

  ASSERT_NO_FATAL_FAILURE(announce_two());
  EXPECT_FALSE(session_->expire(now_ + std::chrono::milliseconds(999)).has_value());
  EXPECT_TRUE(session_->expire(now_ + std::chrono::milliseconds(1000)).has_value());
  expect_both_refused(Code::timeout, "bucket 0 was announced, but none of its bytes came");

  ASSERT_NO_FATAL_FAILURE(announce_two());
  arrivals_.failure = Status(Code::device, "the link is down");
  session_->advance(now_);
  expect_both_refused(Code::device, "the link is down");

  ASSERT_NO_FATAL_FAILURE(announce_two());
  arrivals_.arrived = 1;
  arrivals_.stream[0] ^= std::byte{1};
  session_->advance(now_);
  expect_both_refused(Code::corrupt, "has digest");

  ASSERT_NO_FATAL_FAILURE(announce_two());
  EXPECT_TRUE(session_->drop("trainer"));
  EXPECT_TRUE(session_->take_answers().empty());  // nobody is there
  EXPECT_EQ(session_->state(), UpdateState::idle);
}

TEST_F(LateBuckets, WholeModelMustHaveTheDigestThatWasAnnounced) {
  const std::string other = Digest128{}.to_hex();
  ipc::UpdateBegin update = message();
  update.weights_digest = other;
  ASSERT_NO_FATAL_FAILURE(begin(update));
  arrivals_.arrived = buckets_;
  for (uint64_t i = 0; i + 1 < buckets_; i++) {
    ASSERT_TRUE(announce(i).is_ok());
    expect_done(advance(), i);
  }
  ASSERT_TRUE(announce(buckets_ - 1).is_ok());
  const Answers answers = advance();
  ASSERT_EQ(answers.size(), 1u);
  ASSERT_FALSE(answers[0].done.is_ok());
  EXPECT_EQ(answers[0].done.status().code(), Code::corrupt);
  EXPECT_NE(answers[0].done.status().message().find("weights_digest " + other), std::string::npos);
  EXPECT_EQ(session_->state(), UpdateState::idle);
}

}  // namespace
}  // namespace exact::worker_tests
