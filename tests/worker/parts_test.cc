// Rollouts in parts, as a client sees them: modes, sums, slow readers, deadlines, cancels, sizes.
#include "tests/worker/parts.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/worker/worker_fixture.h"

namespace exact::worker_tests {
namespace {

using ipc::ReplyMode;

TEST(Parts, EachSampleComesWhenItIsDoneAndTheAnswerIsLast) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  const ipc::Generate request = generate({3, 1, 4}, 12, 5, 4);
  const auto whole = client.call<ipc::GenerateReply>(request);
  ASSERT_TRUE(whole.is_ok()) << whole.status().to_string();
  const Parts parts = take_parts(client, client.post(in_mode(request, ReplyMode::samples)));
  EXPECT_TRUE(parts.error.is_ok()) << parts.error.to_string();
  EXPECT_EQ(parts.chunks, 0u);
  ASSERT_EQ(parts.samples.size(), 4u);
  for (int32_t i = 0; i < 4; i++) {
    expect_same(parts.samples.at(i), whole->completions[static_cast<size_t>(i)]);
  }
}

TEST(Parts, ChunksAddUpToTheWholeForManyClientsAtOnce) {
  constexpr int kClients = 8;
  LocalWorker worker({}, {.max_context = 256, .page_size = 16, .page_count = 60});
  const auto request_of = [](int i) { return generate({i + 1, 7, 9}, 20 + 5 * i, 40 + i, 3); };
  std::vector<std::unique_ptr<RawClient>> clients;
  std::vector<uint64_t> ids;
  for (int i = 0; i < kClients; i++) {
    clients.push_back(std::make_unique<RawClient>(worker.endpoint()));
    clients.back()->hello();
  }
  for (int i = 0; i < kClients; i++) {
    ids.push_back(clients[static_cast<size_t>(i)]->post(in_mode(request_of(i), ReplyMode::tokens)));
  }
  for (size_t i = 0; i < kClients; i++) {
    const Parts parts = take_parts(*clients[i], ids[i]);
    EXPECT_TRUE(parts.error.is_ok()) << parts.error.to_string();
    ASSERT_EQ(parts.samples.size(), 3u);
    EXPECT_GE(parts.chunks, 3u);
    expect_sums(parts);
    const auto whole = clients[i]->call<ipc::GenerateReply>(request_of(static_cast<int>(i)));
    ASSERT_TRUE(whole.is_ok()) << whole.status().to_string();
    for (size_t s = 0; s < 3; s++) {
      expect_same(parts.samples.at(static_cast<int32_t>(s)), whole->completions[s]);
    }
  }
}

// 64 samples of these are thousands of chunks: more than all queues and the socket's buffers hold.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int32_t kManyTokens = 80;
#else
constexpr int32_t kManyTokens = 250;
#endif

TEST(Parts, SlowReaderGetsCoarserChunksAndNobodyWaitsForIt) {
  LocalWorker worker({.max_queued_messages = 150, .heartbeat_ms = 60'000});
  RawClient slow(worker.endpoint(), 8), good(worker.endpoint());
  slow.hello();
  good.hello();
  const uint64_t id =
      slow.post(in_mode(generate({1, 2, 3}, kManyTokens, 5, 64), ReplyMode::tokens));
  ASSERT_TRUE(eventually([&] { return good.status().running > 0; }));
  EXPECT_TRUE(good.call<ipc::GenerateReply>(generate({1}, 4, 1)).is_ok());
  ASSERT_TRUE(eventually([&] { return good.status().running == 0; }, milliseconds(60'000)));
  EXPECT_EQ(good.status().clients, 2);
  const Parts parts = take_parts(slow, id);
  EXPECT_TRUE(parts.error.is_ok()) << parts.error.to_string();
  ASSERT_EQ(parts.samples.size(), 64u);
  EXPECT_LT(parts.chunks, 64u * static_cast<size_t>(kManyTokens));
  expect_sums(parts);
}

TEST(Parts, ReaderThatHasStoppedIsDroppedThoughItPings) {
  LocalWorker worker({.max_queued_messages = 150, .heartbeat_ms = 200});
  RawClient stopped(worker.endpoint(), 8), good(worker.endpoint());
  stopped.hello();
  good.hello();
  stopped.post(in_mode(generate({1, 2, 3}, kManyTokens, 5, 64), ReplyMode::tokens));
  bool dropped = false;
  for (int i = 0; i < 400 && !dropped; i++) {
    if (i % 8 == 0) stopped.post(ipc::Ping{});
    std::this_thread::sleep_for(milliseconds(10));
    dropped = good.status().clients == 1;
  }
  EXPECT_TRUE(dropped);
  const ipc::StatusReply status = good.status();
  EXPECT_EQ(status.running + status.waiting, 0);
}

TEST(Parts, ReaderForWhomTooMuchWaitsIsDropped) {
  LocalWorker worker(
      {.max_queued_messages = 150, .max_unsent_bytes = 4096, .heartbeat_ms = 60'000});
  RawClient stopped(worker.endpoint(), 8), good(worker.endpoint());
  stopped.hello();
  good.hello();
  stopped.post(in_mode(generate({1, 2, 3}, kManyTokens, 5, 64), ReplyMode::tokens));
  EXPECT_TRUE(eventually([&] { return good.status().clients == 1; }));
  EXPECT_EQ(good.status().running + good.status().waiting, 0);
}

TEST(Parts, DrainDeliversWhatWaitsForASlowReader) {
  LocalWorker worker({.max_queued_messages = 150, .heartbeat_ms = 60'000});
  RawClient slow(worker.endpoint(), 8);
  slow.hello();
  const uint64_t id = worker.post_and_hold(
      slow, in_mode(generate({1, 2, 3}, kManyTokens, 5, 64), ReplyMode::tokens));
  worker.server().drain();
  worker.release();
  const Parts parts = take_parts(slow, id);
  EXPECT_EQ(parts.samples.size(), 64u);
  expect_sums(parts);
  EXPECT_TRUE(worker.join().is_ok());
}

TEST(Parts, DeadlineEndsASampleWithAPrefixOfWhatWouldHaveCome) {
  LocalWorker worker({}, {.max_context = 256, .max_running = 2});
  RawClient client(worker.endpoint());
  client.hello();
  ipc::Generate request = generate({3, 1, 4}, 250, 5, 3);
  const auto whole = client.call<ipc::GenerateReply>(request);
  ASSERT_TRUE(whole.is_ok()) << whole.status().to_string();
  worker.backend().slow_down(milliseconds(5));  // two run for a second and more, one waits
  request.deadline_ms = 300;
  for (const ReplyMode mode : {ReplyMode::whole, ReplyMode::tokens}) {
    std::vector<ipc::Completion> samples;
    const uint64_t id = client.post(in_mode(request, mode));
    if (mode == ReplyMode::whole) {
      const auto reply = client.take<ipc::GenerateReply>(id);
      ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
      samples = reply->completions;
    } else {
      const Parts parts = take_parts(client, id);
      expect_sums(parts);
      for (const auto& [index, completion] : parts.samples) samples.push_back(completion);
    }
    ASSERT_EQ(samples.size(), 3u);
    for (size_t s = 0; s < 3; s++) {
      EXPECT_EQ(samples[s].finish_reason, static_cast<uint8_t>(FinishReason::deadline));
      const size_t made = samples[s].tokens.size();
      ASSERT_LT(made, s < 2 ? 250u : 2u) << "the third waits for a place";
      std::vector<float> prefix = whole->completions[s].logprobs;
      prefix.resize(made);
      EXPECT_BITS_EQ(samples[s].logprobs, prefix, s);
    }
  }
  request.deadline_ms = 60'000;
  worker.backend().slow_down(milliseconds(0));
  EXPECT_EQ(client.call<ipc::GenerateReply>(request)->completions.at(0).tokens.size(), 250u);
}

TEST(Parts, CancelledStreamEndsWithWhatItHas) {
  LocalWorker worker;
  worker.backend().slow_down(milliseconds(2));
  RawClient client(worker.endpoint());
  client.hello();
  const uint64_t id = client.post(in_mode(generate({1, 2, 3}, 250, 5, 2), ReplyMode::tokens));
  Parts parts;
  bool cancelled = false;
  while (!parts.ended) {
    const auto answer = client.next_answer();
    ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
    if (answer->header.type == ipc::MessageType::cancel_reply) {
      EXPECT_TRUE(part_of<ipc::CancelReply>(*answer).found);
      continue;
    }
    take_part(*answer, parts);
    if (parts.chunks == 5 && !cancelled) {
      client.post(ipc::Cancel{id});
      cancelled = true;
    }
  }
  ASSERT_EQ(parts.samples.size(), 2u);
  expect_sums(parts);
  for (const auto& [index, completion] : parts.samples) {
    EXPECT_EQ(completion.finish_reason, static_cast<uint8_t>(FinishReason::cancelled));
    EXPECT_LT(completion.tokens.size(), 250u);
  }
}

TEST(Parts, ClientThatGoesAwayMidStreamLeavesNothingBehind) {
  LocalWorker worker({.heartbeat_ms = 200});
  worker.backend().slow_down(milliseconds(2));
  RawClient watcher(worker.endpoint());
  watcher.hello();
  {
    RawClient gone(worker.endpoint());
    gone.hello();
    gone.post(in_mode(generate({1, 2, 3}, 250, 5, 8), ReplyMode::tokens));
    EXPECT_TRUE(eventually([&] { return watcher.status().running > 0; }));
  }
  EXPECT_TRUE(eventually([&] {
    const ipc::StatusReply status = watcher.status();
    return status.clients == 1 && status.running == 0 && status.waiting == 0;
  }));
}

TEST(Parts, UnknownModesAndNegativeDeadlinesAreRefusedByName) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  ipc::Generate request = generate({1, 2}, 4, 1);
  request.reply_mode = 3;
  expect_error(client.call<ipc::GenerateReply>(request).status(), Code::invalid, "reply_mode is 3");
  request.reply_mode = 0;
  request.deadline_ms = -1;
  expect_error(client.call<ipc::GenerateReply>(request).status(), Code::invalid, "deadline_ms");
}

TEST(Parts, WhatCouldNotFitOneMessageIsRefusedAtTheDoor) {
  LocalWorker worker({.max_message_bytes = 100'000});
  RawClient client(worker.endpoint());
  client.hello();
  // 250 tokens of up to 256 ids each are 260,000 bytes.
  ipc::Generate request = in_mode(generate({1, 2}, 250, 1), ReplyMode::samples);
  request.kept_set = true;
  expect_error(client.call<ipc::GenerateReply>(request).status(), Code::invalid, "kept_set");
  request.top_k = 20;
  EXPECT_TRUE(take_parts(client, client.post(request)).error.is_ok());
  // Thirty-two samples at once are too many, one after the other they are not.
  request = generate({1, 2}, 250, 1, 32);
  request.entropy = true;
  expect_error(client.call<ipc::GenerateReply>(request).status(), Code::invalid,
               "reply_mode samples");
  EXPECT_EQ(take_parts(client, client.post(in_mode(request, ReplyMode::samples))).samples.size(),
            32u);
}

}  // namespace
}  // namespace exact::worker_tests
