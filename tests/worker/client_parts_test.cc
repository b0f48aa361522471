// The client's events against a worker that sends parts rightly, wrongly, or at a bad moment.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tests/worker/bridge_fixture.h"
#include "tests/worker/scripted_worker.h"
#include "trainer_bridge/client.h"

namespace exact::bridge_tests {
namespace {

using bridge::Event;
using bridge::MaskRefused;
using bridge::Reply;
using std::chrono::milliseconds;
using Message = ScriptedWorker::Message;
using ipc::MessageType;
using ipc::SampleDone;
using ipc::TokenChunk;

constexpr milliseconds kSoon{5'000};

ipc::Generate streaming(int32_t n = 1) {
  ipc::Generate request;
  request.prompt = {1, 2};
  request.n = n;
  request.max_new_tokens = 8;
  request.reply_mode = static_cast<uint8_t>(ipc::ReplyMode::tokens);
  return request;
}

TokenChunk chunk_of(int32_t sample, int32_t begin, const std::vector<int32_t>& tokens) {
  TokenChunk chunk{sample, begin, tokens, {}, {}};
  for (const int32_t token : tokens) {
    chunk.logprobs.push_back(static_cast<float>(-token));
    chunk.processed_logprobs.push_back(static_cast<float>(-2 * token));
  }
  return chunk;
}

SampleDone done_of(int32_t sample, const std::vector<int32_t>& tokens) {
  const TokenChunk whole = chunk_of(sample, 0, tokens);
  SampleDone done{std::string(32, 'a'), {}};
  done.completion.sample_index = sample;
  done.completion.tokens = whole.tokens;
  done.completion.logprobs = whole.logprobs;
  done.completion.processed_logprobs = whole.processed_logprobs;
  return done;
}

// Answers a Generate by what `parts` sends, and nothing else of note.
ScriptedWorker::Script on_generate(
    std::function<void(ScriptedWorker&, const std::string& peer, uint64_t id)> parts) {
  return [parts = std::move(parts)](ScriptedWorker& self, const Message& message) {
    if (message.header.type != MessageType::generate) return false;
    parts(self, message.peer, message.header.request_id);
    return true;
  };
}

Event event_of(bridge::Client& client) {
  auto event = client.next_event(kSoon);
  EXPECT_TRUE(event.is_ok()) << event.status().to_string();
  return event.is_ok() ? std::move(*event) : Event{};
}

TEST(ClientEvents, PartsComeInOrderAndTheReplyIsLast) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(
      endpoint.name(), ScriptedWorker::greeting(),
      on_generate([](ScriptedWorker& self, const std::string& peer, uint64_t id) {
        self.answer(peer, id, chunk_of(0, 0, {5}));
        self.answer(peer, id, chunk_of(1, 0, {6}));
        self.answer(peer, id, chunk_of(0, 1, {7, 8}));
        self.answer(peer, id, done_of(0, {5, 7, 8}));
        self.answer(peer, id, done_of(1, {6}));
        self.answer(peer, id, ipc::GenerateReply{});
      }));
  const auto client = connect(endpoint.name());
  const auto id = client->submit(streaming(2));
  ASSERT_TRUE(id.is_ok());
  ASSERT_TRUE(client->ping().is_ok());  // all of it is here now: adjacent chunks are one
  const Event first = event_of(*client);
  EXPECT_EQ(first.request_id, *id);
  EXPECT_EQ(std::get<TokenChunk>(first.what).tokens, (std::vector<int32_t>{5, 7, 8}));
  EXPECT_EQ(std::get<TokenChunk>(first.what).logprobs, (std::vector<float>{-5, -7, -8}));
  EXPECT_EQ(std::get<TokenChunk>(event_of(*client).what).sample_index, 1);
  EXPECT_EQ(std::get<SampleDone>(event_of(*client).what).completion.tokens.size(), 3u);
  EXPECT_EQ(std::get<SampleDone>(event_of(*client).what).completion.tokens.size(), 1u);
  EXPECT_EQ(client->in_flight(), 1u);
  EXPECT_TRUE(std::get<Reply>(event_of(*client).what).value.completions.empty());
  EXPECT_EQ(client->in_flight(), 0u);
  EXPECT_EQ(client->next_event(milliseconds(1)).status().code(), Code::invalid);
  EXPECT_EQ(client->dropped_answers(), 0u);
}

TEST(ClientEvents, ReplyOfAStreamHasTheCompletionsThatNobodyTook) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(
      endpoint.name(), ScriptedWorker::greeting(),
      on_generate([](ScriptedWorker& self, const std::string& peer, uint64_t id) {
        self.answer(peer, id, chunk_of(1, 0, {6}));
        self.answer(peer, id, done_of(1, {6}));
        self.answer(peer, id, chunk_of(0, 0, {5}));
        self.answer(peer, id, done_of(0, {5}));
        self.answer(peer, id, ipc::GenerateReply{"", 9, {}});
      }));
  const auto client = connect(endpoint.name());
  const auto generated = client->generate(streaming(2));
  ASSERT_TRUE(generated.is_ok()) << generated.status().to_string();
  EXPECT_EQ(generated->seed, 9u);
  ASSERT_EQ(generated->completions.size(), 2u);
  EXPECT_EQ(generated->completions[0].tokens, (std::vector<int32_t>{5}));
  EXPECT_EQ(generated->completions[1].tokens, (std::vector<int32_t>{6}));

  ASSERT_TRUE(client->submit(streaming(2)).is_ok());
  const auto reply = client->next_reply(kSoon);
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  EXPECT_EQ(reply->value.completions.size(), 2u);
  EXPECT_EQ(client->in_flight(), 0u);
}

// What a worker may never say of a stream ends it as corrupt, frees the worker, and harms nobody.
TEST(ClientEvents, PartsThatCantBeEndTheirRolloutAlone) {
  using Parts = std::function<void(ScriptedWorker&, const std::string&, uint64_t)>;
  const std::vector<std::pair<std::string, Parts>> cases{
      {"begins at token 2",
       [](auto& self, auto& peer, uint64_t id) {
         self.answer(peer, id, chunk_of(0, 0, {5}));
         self.answer(peer, id, chunk_of(0, 2, {6}));
       }},
      {"nobody asked for",
       [](auto& self, auto& peer, uint64_t id) { self.answer(peer, id, chunk_of(1, 0, {5})); }},
      {"nobody asked for",
       [](auto& self, auto& peer, uint64_t id) { self.answer(peer, id, chunk_of(-1, 0, {5})); }},
      {"can't be",
       [](auto& self, auto& peer, uint64_t id) { self.answer(peer, id, chunk_of(0, 0, {})); }},
      {"can't be",
       [](auto& self, auto& peer, uint64_t id) {
         TokenChunk chunk = chunk_of(0, 0, {5, 6});
         chunk.logprobs.pop_back();
         self.answer(peer, id, chunk);
       }},
      {"more tokens than max_new_tokens",
       [](auto& self, auto& peer, uint64_t id) {
         self.answer(peer, id, chunk_of(0, 0, std::vector<int32_t>(9, 1)));
       }},
      {"do not add up",
       [](auto& self, auto& peer, uint64_t id) {
         self.answer(peer, id, chunk_of(0, 0, {5}));
         self.answer(peer, id, done_of(0, {5, 6}));
       }},
      {"do not add up",
       [](auto& self, auto& peer, uint64_t id) {
         TokenChunk chunk = chunk_of(0, 0, {5});
         chunk.logprobs[0] = std::nextafter(chunk.logprobs[0], 0.0f);
         self.answer(peer, id, chunk);
         self.answer(peer, id, done_of(0, {5}));
       }},
      {"is done",
       [](auto& self, auto& peer, uint64_t id) {
         self.answer(peer, id, done_of(0, {}));
         self.answer(peer, id, done_of(0, {}));
       }},
      {"0 of its 1 samples",
       [](auto& self, auto& peer, uint64_t id) { self.answer(peer, id, ipc::GenerateReply{}); }},
      {"without masks",
       [](auto& self, auto& peer, uint64_t id) {
         self.answer(peer, id, ipc::MaskWanted{0, 0, -1});
       }},
  };
  for (const auto& [words, parts] : cases) {
    const PrivateEndpoint endpoint;
    std::atomic<int> cancels{0};
    const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                                [&](ScriptedWorker& self, const Message& message) {
                                  if (message.header.type == MessageType::cancel) cancels++;
                                  if (message.header.type != MessageType::generate) return false;
                                  parts(self, message.peer, message.header.request_id);
                                  return true;
                                });
    const auto client = connect(endpoint.name());
    ASSERT_TRUE(client->submit(streaming()).is_ok());
    const auto reply = client->next_reply(kSoon);
    ASSERT_TRUE(reply.is_ok()) << words << reply.status().to_string();
    EXPECT_EQ(reply->error.code(), Code::corrupt) << words;
    EXPECT_NE(reply->error.message().find(words), std::string::npos) << reply->error.message();
    EXPECT_EQ(client->in_flight(), 0u);
    EXPECT_TRUE(client->ping().is_ok());  // the cancel was read before this
    EXPECT_EQ(cancels, 1) << words;
  }
}

TEST(ClientEvents, MaskIsAnsweredWithoutWaitingAndARefusalIsAnEvent) {
  const PrivateEndpoint endpoint;
  std::vector<ipc::Allow> allowed;
  uint64_t rollout = 0;
  std::optional<ScriptedWorker> worker;
  worker.emplace(endpoint.name(), ScriptedWorker::greeting(),
                 [&](ScriptedWorker& self, const Message& message) {
                   if (message.header.type == MessageType::generate) {
                     rollout = message.header.request_id;
                     self.answer(message.peer, rollout, ipc::MaskWanted{0, 0, -1});
                     return true;
                   }
                   if (message.header.type != MessageType::allow) return false;
                   allowed.push_back(message.as<ipc::Allow>());
                   if (allowed.size() == 1) {
                     self.refuse(message.peer, message.header.request_id, Code::invalid,
                                 "ids are wrong");
                     return true;
                   }
                   self.answer(message.peer, message.header.request_id, ipc::AllowReply{});
                   self.answer(message.peer, rollout, done_of(0, {7}));
                   self.answer(message.peer, rollout, ipc::GenerateReply{});
                   return true;
                 });
  const auto client = connect(endpoint.name());
  ipc::Generate request = streaming();
  request.reply_mode = static_cast<uint8_t>(ipc::ReplyMode::samples);
  request.masked = true;
  const auto id = client->submit(request);
  ASSERT_TRUE(id.is_ok());
  EXPECT_EQ(std::get<ipc::MaskWanted>(event_of(*client).what).previous_token, -1);
  ASSERT_TRUE(client->allow(*id, 0, 0, std::vector<int32_t>{9, 3}).is_ok());
  const Event refused = event_of(*client);
  EXPECT_EQ(refused.request_id, *id);
  EXPECT_EQ(std::get<MaskRefused>(refused.what).error.message(), "ids are wrong");
  ASSERT_TRUE(client->allow(*id, 0, 0, std::vector<int32_t>{7}).is_ok());
  EXPECT_EQ(std::get<SampleDone>(event_of(*client).what).completion.tokens.at(0), 7);
  EXPECT_TRUE(std::get<Reply>(event_of(*client).what).error.is_ok());
  worker.reset();  // its thread has ended: what it wrote can be read
  ASSERT_EQ(allowed.size(), 2u);
  EXPECT_EQ(allowed[0].ids, (std::vector<int32_t>{9, 3}));
  EXPECT_EQ(allowed[1].target_request_id, *id);
}

// As when a deadline passes while the ids are on their way.
TEST(ClientEvents, MaskThatComesTooLateIsNoEventAfterTheReply) {
  const PrivateEndpoint endpoint;
  uint64_t rollout = 0;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                              [&](ScriptedWorker& self, const Message& message) {
                                if (message.header.type == MessageType::generate) {
                                  rollout = message.header.request_id;
                                  self.answer(message.peer, rollout, ipc::MaskWanted{0, 0, -1});
                                  return true;
                                }
                                if (message.header.type != MessageType::allow) return false;
                                self.answer(message.peer, rollout, done_of(0, {}));
                                self.answer(message.peer, rollout, ipc::GenerateReply{});
                                self.refuse(message.peer, message.header.request_id,
                                            Code::not_found, "too late");
                                return true;
                              });
  const auto client = connect(endpoint.name());
  ipc::Generate request = streaming();
  request.masked = true;
  const auto id = client->submit(request);
  ASSERT_TRUE(id.is_ok());
  EXPECT_TRUE(std::holds_alternative<ipc::MaskWanted>(event_of(*client).what));
  ASSERT_TRUE(client->allow(*id, 0, 0, std::vector<int32_t>{7}).is_ok());
  ASSERT_TRUE(client->ping().is_ok());  // all of it is here now
  EXPECT_TRUE(std::holds_alternative<SampleDone>(event_of(*client).what));
  EXPECT_TRUE(std::holds_alternative<Reply>(event_of(*client).what));
  EXPECT_EQ(client->next_event(milliseconds(1)).status().code(), Code::invalid);
}

TEST(ClientEvents, ErrorAfterPartsIsTheReply) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(
      endpoint.name(), ScriptedWorker::greeting(),
      on_generate([](ScriptedWorker& self, const std::string& peer, uint64_t id) {
        self.answer(peer, id, chunk_of(0, 0, {5}));
        self.refuse(peer, id, Code::device, "the device is gone");
      }));
  const auto client = connect(endpoint.name());
  ASSERT_TRUE(client->submit(streaming()).is_ok());
  EXPECT_TRUE(std::holds_alternative<TokenChunk>(event_of(*client).what));
  EXPECT_EQ(std::get<Reply>(event_of(*client).what).error.code(), Code::device);
}

}  // namespace
}  // namespace exact::bridge_tests
