// What waits for a client: in order, merged, bounded.
#include "worker/outbox.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace exact::worker_tests {
namespace {

using ipc::Frames;
using ipc::TokenChunk;
using worker::Outbox;

TokenChunk chunk_of(int32_t sample, int32_t begin, int32_t tokens) {
  TokenChunk chunk{sample, begin, {}, {}, {}};
  for (int32_t i = begin; i < begin + tokens; i++) {
    chunk.tokens.push_back(i);
    chunk.logprobs.push_back(static_cast<float>(-i));
    chunk.processed_logprobs.push_back(static_cast<float>(-2 * i));
  }
  return chunk;
}

// Takes up to `room` messages, then is full.
std::vector<Frames> flushed(Outbox& outbox, size_t room = SIZE_MAX) {
  std::vector<Frames> sent;
  const auto took = outbox.flush([&](const Frames& frames) {
    if (sent.size() == room) return Status(Code::exhausted, "full");
    sent.push_back(frames);
    return Status();
  });
  EXPECT_TRUE(took.is_ok());
  EXPECT_EQ(*took, !sent.empty());
  return sent;
}

TEST(Outbox, ChunksOfASampleThatWaitsBecomeOneInItsPlace) {
  Outbox outbox({10, 1 << 20});
  ASSERT_TRUE(outbox.push(1, chunk_of(0, 5, 2)));
  ASSERT_TRUE(outbox.push(1, chunk_of(1, 0, 1)));
  ASSERT_TRUE(outbox.push(2, chunk_of(0, 0, 1)));
  ASSERT_TRUE(outbox.push(ipc::encode(ipc::Pong{3}, 9)));
  ASSERT_TRUE(outbox.push(1, chunk_of(0, 7, 3)));
  EXPECT_EQ(outbox.messages(), 4u);
  const std::vector<Frames> sent = flushed(outbox);
  ASSERT_EQ(sent.size(), 4u);
  EXPECT_EQ(sent[0].body, ipc::encode(chunk_of(0, 5, 5), 1).body);
  EXPECT_EQ(sent[1].body, ipc::encode(chunk_of(1, 0, 1), 1).body);
  EXPECT_EQ(sent[2].header, ipc::encode(chunk_of(0, 0, 1), 2).header);
  EXPECT_EQ(sent[3].header, ipc::encode(ipc::Pong{3}, 9).header);
  EXPECT_TRUE(outbox.empty());
  EXPECT_EQ(outbox.bytes(), 0u);
}

TEST(Outbox, WhatWasSentIsNotMergedInto) {
  Outbox outbox({10, 1 << 20});
  ASSERT_TRUE(outbox.push(1, chunk_of(0, 0, 1)));
  ASSERT_TRUE(outbox.push(1, chunk_of(1, 0, 1)));
  EXPECT_EQ(flushed(outbox, 1).size(), 1u);
  ASSERT_TRUE(outbox.push(1, chunk_of(0, 1, 1)));
  const std::vector<Frames> sent = flushed(outbox);
  ASSERT_EQ(sent.size(), 2u);
  EXPECT_EQ(sent[1].body, ipc::encode(chunk_of(0, 1, 1), 1).body);
}

TEST(Outbox, FullRefusesAndKeepsWhatItHas) {
  Outbox few({2, 1 << 20});
  ASSERT_TRUE(few.push(ipc::encode(ipc::Ping{}, 1)));
  ASSERT_TRUE(few.push(1, chunk_of(0, 0, 1)));
  EXPECT_FALSE(few.push(ipc::encode(ipc::Ping{}, 2)));
  EXPECT_FALSE(few.push(1, chunk_of(1, 0, 1)));
  EXPECT_TRUE(few.push(1, chunk_of(0, 1, 1)));  // no message more
  EXPECT_EQ(flushed(few).size(), 2u);

  Outbox small({10, 1000});
  const Frames large = ipc::encode(ipc::ErrorReply{1, std::string(5000, 'x')}, 1);
  EXPECT_TRUE(small.push(large));  // the first is taken whatever its size
  EXPECT_FALSE(small.push(large));
  EXPECT_FALSE(small.push(1, chunk_of(0, 0, 1)));
  EXPECT_EQ(flushed(small).size(), 1u);
  EXPECT_TRUE(small.push(1, chunk_of(0, 0, 60)));
  EXPECT_FALSE(small.push(1, chunk_of(0, 60, 60)));
  EXPECT_EQ(flushed(small).size(), 1u);
}

TEST(Outbox, LostPeerIsToldAndNothingIsForgotten) {
  Outbox outbox({10, 1 << 20});
  ASSERT_TRUE(outbox.push(ipc::encode(ipc::Ping{}, 1)));
  const auto lost =
      outbox.flush([](const Frames&) { return Status(Code::peer_lost, "it has gone"); });
  EXPECT_EQ(lost.status().code(), Code::peer_lost);
  EXPECT_EQ(outbox.messages(), 1u);
}

// Whatever the pace of the reader, the chunks of each sample add up, in order.
TEST(Outbox, AnyPaceDeliversEachTokenOnce) {
  for (uint64_t seed = 1; seed <= 50; seed++) {
    std::mt19937_64 random(seed);
    Outbox outbox({64, 1 << 20});
    std::vector<int32_t> made(8, 0), read(8, 0);
    const auto receive = [&](const std::vector<Frames>& sent) {
      for (const Frames& frames : sent) {
        const auto header = ipc::decode_header(std::as_bytes(std::span(frames.header)));
        const auto chunk =
            ipc::decode_body<TokenChunk>(*header, std::as_bytes(std::span(frames.body)));
        ASSERT_TRUE(chunk.is_ok());
        int32_t& next = read[static_cast<size_t>(chunk->sample_index)];
        EXPECT_EQ(chunk->begin, next) << "seed " << seed;
        next += static_cast<int32_t>(chunk->tokens.size());
        EXPECT_EQ(
            frames.body,
            ipc::encode(chunk_of(chunk->sample_index, chunk->begin, next - chunk->begin), 1).body);
      }
    };
    for (int step = 0; step < 200; step++) {
      const auto sample = static_cast<int32_t>(random() % made.size());
      const auto tokens = static_cast<int32_t>(1 + random() % 3);
      ASSERT_TRUE(outbox.push(1, chunk_of(sample, made[static_cast<size_t>(sample)], tokens)));
      made[static_cast<size_t>(sample)] += tokens;
      if (random() % 5 == 0) receive(flushed(outbox, random() % 6));
    }
    receive(flushed(outbox));
    EXPECT_EQ(read, made) << "seed " << seed;
  }
}

}  // namespace
}  // namespace exact::worker_tests
