// The client against a real worker: handshake, silence, a restart, and the calls that do work.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/worker/bridge_fixture.h"
#include "trainer_bridge/client.h"

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

}  // namespace
}  // namespace exact::bridge_tests
