// The client against a real worker: handshake, silence, a restart, and the calls that do work.
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "ipc/codec.h"
#include "tests/worker/bridge_fixture.h"
#include "trainer_bridge/client.h"
#include "trainer_bridge/rollout_check.h"

namespace exact::bridge_tests {
namespace {

using bridge::Client;
using bridge::ClientOptions;
using std::chrono::milliseconds;

ipc::Generate prompt_of(size_t ids) {
  ipc::Generate request;
  request.prompt.assign(ids, 1);
  return request;
}

TEST(ClientWithWorker, RealWorkerRefusesAnotherContractIdWithBothIds) {
  const PrivateEndpoint endpoint;
  const ModelConfig config = tiny_config();
  const InProcessWorker worker(config, 1, endpoint.name());
  ClientOptions options;
  options.endpoint = endpoint.name();
  options.contract_id = std::string(32, 'b');
  const auto client = Client::connect(options);
  ASSERT_FALSE(client.is_ok());
  EXPECT_EQ(client.status().code(), Code::contract_mismatch);
  EXPECT_NE(client.status().message().find(contract_id(config).to_hex()), std::string::npos);
  EXPECT_NE(client.status().message().find(options.contract_id), std::string::npos);
}

TEST(ClientWithWorker, LongSilenceWithARealWorkerIsMendedByTheNextCall) {
  const PrivateEndpoint endpoint;
  worker::ServerLimits limits;
  limits.heartbeat_ms = 30;
  const InProcessWorker worker(tiny_config(), 1, endpoint.name(), {.max_context = 256}, limits);
  const auto client = connect(endpoint.name());
  std::this_thread::sleep_for(milliseconds(300));  // the worker forgets this client after 90
  const auto status = client->status();
  ASSERT_TRUE(status.is_ok()) << status.status().to_string();
  EXPECT_EQ(status->clients, 1);
}

TEST(ClientWithWorker, RestartedWorkerFailsWhatWasInFlightAndServesTheNextCall) {
  const PrivateEndpoint endpoint;
  const EngineLimits slow{.max_context = 256, .max_step_tokens = 1};
  worker::ServerLimits limits;
  limits.heartbeat_ms = 200;
  auto worker = std::make_unique<InProcessWorker>(tiny_config(), 1, endpoint.name(), slow, limits);
  const auto client = connect(endpoint.name());
  const std::string digest = client->worker().weights_digest;
  ipc::Generate request = prompt_of(4);
  request.n = 16;
  request.max_new_tokens = 250;
  const auto id = client->submit(request);
  ASSERT_TRUE(id.is_ok()) << id.status().to_string();
  ASSERT_TRUE(client->ping().is_ok());
  worker.reset();
  worker = std::make_unique<InProcessWorker>(tiny_config(), 2, endpoint.name(), slow, limits);

  const auto reply = client->next_reply(milliseconds(20'000));
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  EXPECT_EQ(reply->request_id, *id);
  EXPECT_EQ(reply->error.code(), Code::peer_lost) << reply->error.to_string();
  request.max_new_tokens = 2;
  const auto next = client->generate(request);
  ASSERT_TRUE(next.is_ok()) << next.status().to_string();
  EXPECT_EQ(next->completions.size(), 16u);
  EXPECT_NE(client->worker().weights_digest, digest);  // it was greeted by the new one
}

TEST(ClientWithWorker, RealWorkerGeneratesScoresAndCancels) {
  const PrivateEndpoint endpoint;
  const InProcessWorker worker(tiny_config(), 1, endpoint.name());
  const auto client = connect(endpoint.name());
  ipc::Generate request = prompt_of(5);
  request.n = 3;
  request.max_new_tokens = 7;
  const auto reply = client->generate(request);
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  ASSERT_EQ(reply->completions.size(), 3u);
  for (const ipc::Completion& completion : reply->completions) {
    ASSERT_EQ(completion.tokens.size(), 7u);
    std::vector<int32_t> text = request.prompt;
    text.insert(text.end(), completion.tokens.begin(), completion.tokens.end());
    const auto score = client->score(text);
    ASSERT_TRUE(score.is_ok()) << score.status().to_string();
    const std::vector<float> tail(score->logprobs.end() - 7, score->logprobs.end());
    EXPECT_EQ(tail, completion.logprobs);
  }
  request.max_new_tokens = 200;
  request.prompt.assign(2, 3);
  const auto id = client->submit(request);
  ASSERT_TRUE(id.is_ok());
  const auto found = client->cancel(*id);
  ASSERT_TRUE(found.is_ok());
  const auto ended = client->next_reply(milliseconds(10'000));
  ASSERT_TRUE(ended.is_ok()) << ended.status().to_string();
  EXPECT_EQ(ended->request_id, *id);
  EXPECT_TRUE(ended->error.is_ok()) << ended->error.to_string();
  const auto unknown = client->cancel(123'456);
  ASSERT_TRUE(unknown.is_ok());
  EXPECT_FALSE(*unknown);
}

// Everything that a rollout may ask for, in each mode: the same completions, and what they should
// be.
TEST(ClientWithWorker, EachModeGivesTheSameOfAllThatCanBeAsked) {
  const PrivateEndpoint endpoint;
  const InProcessWorker worker(tiny_config(), 1, endpoint.name());
  const auto client = connect(endpoint.name());
  ipc::Generate request = prompt_of(5);
  request.n = 4;
  request.seed = 11;
  request.max_new_tokens = 24;
  request.min_new_tokens = 3;
  request.temperature = 0.8f;
  request.top_k = 40;
  request.top_p = 0.95f;
  request.min_p = 0.01f;
  request.repetition_penalty = 1.2f;
  request.presence_penalty = 0.3f;
  request.frequency_penalty = -0.2f;
  request.logit_bias = {{7, 3.0f}, {9, -2.0f}};
  request.banned_ids = {11};
  request.stop_sequences = {{{7, 7}}, {{7, 12, 7}}};
  request.forced_ids = {20, 21};
  request.top_logprobs = 3;
  request.entropy = request.kept_set = request.prompt_logprobs = true;
  std::vector<std::string> bodies;
  for (const auto mode : {ipc::ReplyMode::whole, ipc::ReplyMode::samples, ipc::ReplyMode::tokens}) {
    request.reply_mode = static_cast<uint8_t>(mode);
    const auto reply = client->generate(request);
    ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
    const Status checked = bridge::check_rollout(request, *reply);
    EXPECT_TRUE(checked.is_ok()) << checked.to_string();
    bodies.push_back(ipc::encode(*reply, 1).body);
  }
  EXPECT_EQ(bodies[1], bodies[0]);
  EXPECT_EQ(bodies[2], bodies[0]);
}

TEST(ClientWithWorker, ManyStreamsOfOneClientEachAddUp) {
  const PrivateEndpoint endpoint;
  const InProcessWorker worker(tiny_config(), 1, endpoint.name());
  const auto client = connect(endpoint.name());
  std::map<uint64_t, ipc::Generate> requests;
  for (uint64_t i = 0; i < 12; i++) {
    ipc::Generate request = prompt_of(2 + i);
    request.seed = i;
    request.max_new_tokens = 30;
    request.n = 2;
    request.reply_mode = static_cast<uint8_t>(ipc::ReplyMode::tokens);
    const auto id = client->submit(request);
    ASSERT_TRUE(id.is_ok());
    requests.emplace(*id, request);
  }
  size_t tokens = 0, samples = 0;
  while (client->in_flight() > 0) {
    const auto event = client->next_event(milliseconds(20'000));
    ASSERT_TRUE(event.is_ok()) << event.status().to_string();
    if (const auto* chunk = std::get_if<ipc::TokenChunk>(&event->what)) {
      tokens += chunk->tokens.size();
    } else if (const auto* done = std::get_if<ipc::SampleDone>(&event->what)) {
      samples++;
      EXPECT_TRUE(
          bridge::check_completion(requests.at(event->request_id), done->completion).is_ok());
    } else if (const auto* reply = std::get_if<bridge::Reply>(&event->what)) {
      EXPECT_TRUE(reply->error.is_ok()) << reply->error.to_string();
    }
  }
  EXPECT_EQ(samples, 24u);
  EXPECT_EQ(tokens, 24u * 30u);
}

}  // namespace
}  // namespace exact::bridge_tests
