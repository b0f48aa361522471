// A worker that sleeps, over the wire: requests wait, deadlines go on, the bits are the same.
#include <gtest/gtest.h>

#include "tests/worker/worker_fixture.h"

namespace exact::worker_tests {
namespace {

TEST(Sleep, ChangesNoBitOfWhatRanAndWhatCame) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  const std::string digest = client.hello().weights_digest;
  EXPECT_EQ(client.status().health, "serving");
  const ipc::Generate request = generate({1, 2, 3}, 24, 5, 2);
  const auto expected = client.call<ipc::GenerateReply>(request);
  ASSERT_TRUE(expected.is_ok());

  // The sleep comes after the first step of a running request.
  const uint64_t running = worker.post_and_hold(client, request);
  const uint64_t slept = client.post(ipc::Sleep{true});
  worker.release();
  const auto sleep = client.take<ipc::SleepReply>(slept);
  ASSERT_TRUE(sleep.is_ok()) << sleep.status().to_string();
  EXPECT_GT(sleep->freed_bytes, 100'000u);
  EXPECT_EQ(client.status().health, "sleeping");
  expect_error(client.call<ipc::SleepReply>(ipc::Sleep{true}).status(), Code::invalid, "asleep");

  ipc::Generate late = request;
  late.deadline_ms = 1;
  const auto ended = client.call<ipc::GenerateReply>(late);
  ASSERT_TRUE(ended.is_ok()) << ended.status().to_string();
  for (const ipc::Completion& completion : ended->completions) {
    EXPECT_EQ(completion.finish_reason, 5);
    EXPECT_TRUE(completion.tokens.empty());
  }

  const auto wake = client.call<ipc::WakeReply>(ipc::Wake{});
  ASSERT_TRUE(wake.is_ok()) << wake.status().to_string();
  EXPECT_EQ(wake->weight_version, 1u);
  EXPECT_EQ(wake->weights_digest, digest);
  const auto reply = client.take<ipc::GenerateReply>(running);
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  ASSERT_EQ(reply->completions.size(), expected->completions.size());
  for (size_t i = 0; i < reply->completions.size(); i++) {
    EXPECT_EQ(reply->completions[i].tokens, expected->completions[i].tokens);
    EXPECT_EQ(reply->completions[i].logprobs, expected->completions[i].logprobs);
  }
  EXPECT_EQ(client.status().health, "serving");
}

TEST(Sleep, WithoutItsWeightsSaysWhatWakesIt) {
  LocalWorker worker;
  const auto client = bridge_tests::connect(worker.endpoint());
  ASSERT_NE(client, nullptr);
  ASSERT_TRUE(client->wake().is_ok()) << "awake is awake";
  const auto slept = client->sleep(false);
  ASSERT_TRUE(slept.is_ok()) << slept.status().to_string();
  expect_error(client->wake().status(), Code::invalid, "push a whole update");
}

}  // namespace
}  // namespace exact::worker_tests
