// The worker's loop: who may speak, what is answered when, and what one client can't do to others.
#include "worker/server.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/expect_bits.h"
#include "tests/worker/update_steps.h"
#include "tests/worker/worker_fixture.h"

namespace exact::worker_tests {
namespace {

using worker::ServerLimits;

TEST(Server, StrangerIsToldToSayHello) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  expect_error(client.call<ipc::Pong>(ipc::Ping{}).status(), Code::invalid, "say Hello");
  expect_error(client.call<ipc::GenerateReply>(generate({1}, 4, 1)).status(), Code::invalid,
               "say Hello");
  client.hello();
  EXPECT_TRUE(client.call<ipc::Pong>(ipc::Ping{}).is_ok());
}

TEST(Server, HelloSaysWhatTheWorkerIs) {
  LocalWorker worker({.max_requests = 7, .heartbeat_ms = 1234});
  RawClient client(worker.endpoint());
  const ipc::HelloReply hello = client.hello();
  EXPECT_EQ(hello.contract_id, contract_id(worker.config()).to_hex());
  EXPECT_EQ(hello.weights_digest.size(), 32u);
  EXPECT_EQ(hello.weight_version, 1u);
  EXPECT_EQ(hello.vocabulary, worker.config().vocabulary);
  EXPECT_EQ(hello.max_context, 256);
  EXPECT_EQ(hello.max_requests, 7);
  EXPECT_EQ(hello.heartbeat_ms, 1234);
  EXPECT_EQ(hello.server.rfind("exact-rollout ", 0), 0u) << hello.server;
}

TEST(Server, ContractMismatchSaysBothIds) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  const std::string other(32, 'f');
  const Status status = client.call<ipc::HelloReply>(ipc::Hello{"test", other}).status();
  expect_error(status, Code::contract_mismatch, other);
  expect_error(status, Code::contract_mismatch, contract_id(worker.config()).to_hex());
  expect_error(client.call<ipc::Pong>(ipc::Ping{}).status(), Code::invalid, "say Hello");
}

TEST(Server, GeneratedLogprobsEqualScoredOnesBitForBit) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  const std::vector<int32_t> prompt{3, 1, 4, 1, 5};
  const auto reply = client.call<ipc::GenerateReply>(generate(prompt, 24, 99, 3));
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  EXPECT_EQ(reply->seed, 99u);
  ASSERT_EQ(reply->completions.size(), 3u);
  for (int32_t i = 0; i < 3; i++) {
    const ipc::Completion& completion = reply->completions[static_cast<size_t>(i)];
    EXPECT_EQ(completion.sample_index, i);
    EXPECT_EQ(completion.finish_reason, static_cast<uint8_t>(FinishReason::length));
    ASSERT_EQ(completion.tokens.size(), 24u);
    std::vector<int32_t> text = prompt;
    text.insert(text.end(), completion.tokens.begin(), completion.tokens.end());
    const auto score = client.call<ipc::ScoreReply>(ipc::Score{text});
    ASSERT_TRUE(score.is_ok()) << score.status().to_string();
    const std::vector<float> tail(score->logprobs.end() - 24, score->logprobs.end());
    EXPECT_BITS_EQ(completion.logprobs, tail, "sample " + std::to_string(i));
    // Temperature 1 and nothing masked: the distribution that was drawn from is the raw one.
    EXPECT_BITS_EQ(completion.processed_logprobs, tail, "sample " + std::to_string(i));
    EXPECT_EQ(score->weights_digest, completion.versions.at(0).weights_digest);
  }
}

TEST(Server, ManyClientsGetTheBitsOfOneAlone) {
  constexpr int kClients = 6;
  std::vector<ipc::GenerateReply> alone, together;
  const auto request_of = [](int i) { return generate({i + 1, 7, 9}, 16 + i, 40 + i, 2); };
  for (int i = 0; i < kClients; i++) {
    LocalWorker worker;
    RawClient client(worker.endpoint());
    client.hello();
    alone.push_back(*client.call<ipc::GenerateReply>(request_of(i)));
  }
  LocalWorker worker({}, {.max_context = 256, .page_size = 16, .page_count = 20});
  std::vector<std::unique_ptr<RawClient>> clients;
  std::vector<uint64_t> ids;
  for (int i = 0; i < kClients; i++) {
    clients.push_back(std::make_unique<RawClient>(worker.endpoint()));
    clients.back()->hello();
  }
  for (int i = 0; i < kClients; i++) {
    ids.push_back(clients[static_cast<size_t>(i)]->post(request_of(i)));
  }
  for (size_t i = 0; i < kClients; i++) {
    const auto reply = clients[i]->take<ipc::GenerateReply>(ids[i]);
    ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
    for (size_t s = 0; s < 2; s++) {
      EXPECT_BITS_EQ(reply->completions[s].tokens, alone[i].completions[s].tokens, i);
      EXPECT_BITS_EQ(reply->completions[s].logprobs, alone[i].completions[s].logprobs, i);
    }
  }
}

TEST(Server, BadRequestIsRefusedByFieldAndHarmsNothing) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  ipc::Generate request = generate({1, 2}, 4, 1);
  request.temperature = -1;
  expect_error(client.call<ipc::GenerateReply>(request).status(), Code::invalid, "temperature");
  request = generate({100'000}, 4, 1);
  expect_error(client.call<ipc::GenerateReply>(request).status(), Code::invalid, "prompt");
  request = generate({1}, 4, 1, 0);
  expect_error(client.call<ipc::GenerateReply>(request).status(), Code::invalid, "n ");
  EXPECT_TRUE(client.call<ipc::GenerateReply>(generate({1, 2}, 4, 1)).is_ok());
  EXPECT_EQ(client.status().running, 0);
}

TEST(Server, AnswerThatCouldOutgrowAMessageIsRefused) {
  LocalWorker worker({.max_message_bytes = 4096});
  RawClient client(worker.endpoint());
  client.hello();
  expect_error(client.call<ipc::GenerateReply>(generate({1}, 250, 1, 4)).status(), Code::invalid,
               "max_new_tokens");
  EXPECT_TRUE(client.call<ipc::GenerateReply>(generate({1}, 50, 1, 2)).is_ok());
}

TEST(Server, RequestIdInFlightCantBeUsedAgain) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  const ipc::Frames first = ipc::encode(generate({1, 2}, 200, 1), 77);
  worker.backend().hold();
  ASSERT_TRUE(client.send_frames(first).is_ok());
  worker.backend().wait_until_held();
  ASSERT_TRUE(client.send_frames(first).is_ok());
  worker.release();
  const auto refused = client.next_answer();
  ASSERT_TRUE(refused.is_ok());
  EXPECT_EQ(refused->header.request_id, 77u);
  expect_error(RawClient::read<ipc::GenerateReply>(*refused).status(), Code::invalid, "in flight");
  const auto answered = client.next_answer();
  ASSERT_TRUE(answered.is_ok());
  EXPECT_TRUE(RawClient::read<ipc::GenerateReply>(*answered).is_ok());
  // Answered: the id is free.
  ASSERT_TRUE(client.send_frames(ipc::encode(generate({1, 2}, 2, 1), 77)).is_ok());
  EXPECT_TRUE(RawClient::read<ipc::GenerateReply>(*client.next_answer()).is_ok());
}

TEST(Server, FullWorkerAnswersExhausted) {
  LocalWorker worker({.max_requests = 3}, {.max_context = 256, .max_running = 1, .max_waiting = 4});
  RawClient client(worker.endpoint());
  client.hello();
  expect_error(client.call<ipc::GenerateReply>(generate({1}, 4, 1, 9)).status(), Code::exhausted,
               "queue");
  std::vector<uint64_t> ids{worker.post_and_hold(client, generate({1}, 250, 0))};
  for (uint64_t i = 1; i < 3; i++) ids.push_back(client.post(generate({1}, 250, i)));
  const uint64_t one_too_many = client.post(generate({1}, 4, 1));
  worker.release();
  expect_error(client.take<ipc::GenerateReply>(one_too_many).status(), Code::exhausted,
               "unanswered");
  for (const uint64_t id : ids) EXPECT_TRUE(client.take<ipc::GenerateReply>(id).is_ok());
}

TEST(Server, CancelledRequestIsAnsweredWithWhatItHas) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  const uint64_t id = worker.post_and_hold(client, generate({1, 2, 3}, 250, 5, 2));
  const uint64_t cancel = client.post(ipc::Cancel{id});
  worker.release();
  const auto cancelled = client.take<ipc::CancelReply>(cancel);
  ASSERT_TRUE(cancelled.is_ok()) << cancelled.status().to_string();
  EXPECT_TRUE(cancelled->found);
  const auto reply = client.take<ipc::GenerateReply>(id);
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  ASSERT_EQ(reply->completions.size(), 2u);
  for (const ipc::Completion& completion : reply->completions) {
    EXPECT_EQ(completion.finish_reason, static_cast<uint8_t>(FinishReason::cancelled));
    EXPECT_LT(completion.tokens.size(), 250u);
  }
  EXPECT_FALSE(client.call<ipc::CancelReply>(ipc::Cancel{id})->found);
}

TEST(Server, ClientCantCancelAnothersRequest) {
  LocalWorker worker;
  RawClient one(worker.endpoint()), other(worker.endpoint());
  one.hello();
  other.hello();
  const uint64_t id = one.post(generate({1, 2, 3}, 200, 5));
  EXPECT_FALSE(other.call<ipc::CancelReply>(ipc::Cancel{id})->found);
  EXPECT_EQ(one.take<ipc::GenerateReply>(id)->completions.at(0).tokens.size(), 200u);
}

TEST(Server, SilentClientLosesItsRequestsAndNobodyElses) {
  // One waits behind the other's group, long enough to be silent for three heartbeats.
  LocalWorker worker({.heartbeat_ms = 200},
                     {.max_context = 512, .max_step_tokens = 1, .max_running = 1});
  RawClient watcher(worker.endpoint());
  watcher.hello();
  {
    RawClient silent(worker.endpoint());
    silent.hello();
    worker.backend().slow_down(milliseconds(2));  // all of it would take minutes
    for (uint64_t i = 0; i < 400; i++) silent.post(generate({1, 2, 3}, 500, i));
    EXPECT_TRUE(eventually([&] { return watcher.status().running > 0; }));
    EXPECT_TRUE(eventually([&] { return watcher.status().clients == 1; }));
  }
  EXPECT_TRUE(eventually([&] {
    const ipc::StatusReply status = watcher.status();
    return status.running == 0 && status.waiting == 0 && status.pages_free == status.pages_total;
  }));
  EXPECT_TRUE(watcher.call<ipc::GenerateReply>(generate({1}, 4, 1)).is_ok());
}

TEST(Server, HeartbeatsKeepAWaitingClient) {
  LocalWorker worker({.heartbeat_ms = 200},
                     {.max_context = 512, .max_step_tokens = 4, .max_running = 4});
  RawClient client(worker.endpoint());
  client.hello();
  for (int i = 0; i < 20; i++) {
    std::this_thread::sleep_for(milliseconds(60));
    ASSERT_TRUE(client.call<ipc::Pong>(ipc::Ping{}).is_ok());
  }
  std::this_thread::sleep_for(milliseconds(900));
  expect_error(client.call<ipc::Pong>(ipc::Ping{}).status(), Code::invalid, "say Hello");
}

TEST(Server, ClientBeyondTheMostIsRefusedUntilOneHasGone) {
  LocalWorker worker({.max_clients = 2, .heartbeat_ms = 150});
  RawClient third(worker.endpoint());
  {
    RawClient one(worker.endpoint()), two(worker.endpoint());
    one.hello();
    two.hello();
    one.hello();  // again: it is one of the two
    expect_error(third.call<ipc::HelloReply>(ipc::Hello{"third", ""}).status(), Code::exhausted,
                 "2 clients");
  }
  EXPECT_TRUE(eventually([&] {
    return third.call<ipc::HelloReply>(ipc::Hello{"third", ""}).is_ok();
  }));
}

TEST(Server, ClientThatDoesNotReadCantStopTheLoop) {
  LocalWorker worker({.max_queued_messages = 8, .heartbeat_ms = 60'000});
  RawClient good(worker.endpoint());
  good.hello();
  RawClient deaf(worker.endpoint(), 8);
  deaf.hello();
  // Its answers fill its queues, the socket's buffers and the worker's queue; then it is dropped.
  const bool dropped = eventually([&] {
    for (int i = 0; i < 500; i++) deaf.post(ipc::StatusQuery{});
    return good.status().clients == 1;
  });
  EXPECT_TRUE(dropped);
  EXPECT_TRUE(good.call<ipc::GenerateReply>(generate({1}, 4, 1)).is_ok());
}

TEST(Server, FloodOfOneClientDoesNotHoldUpAnother) {
  constexpr int kFlood = 200;
  LocalWorker worker({}, {.max_context = 256, .max_running = 2});
  RawClient flooding(worker.endpoint()), other(worker.endpoint());
  flooding.hello();
  other.hello();
  worker.post_and_hold(flooding, generate({1, 2}, 20, 1));
  for (int i = 1; i < kFlood; i++)
    flooding.post(generate({1, 2}, 20, 1 + static_cast<uint64_t>(i)));
  const uint64_t id = other.post(generate({3, 4}, 20, 5));
  worker.release();
  ASSERT_TRUE(other.take<ipc::GenerateReply>(id).is_ok());
  EXPECT_GT(other.status().waiting, kFlood / 2);
}

TEST(Server, DrainFinishesWhatRunsAndRefusesWhatIsNew) {
  LocalWorker worker({}, {.max_context = 512, .max_running = 2});
  RawClient client(worker.endpoint());
  client.hello();
  RawClient waiting(worker.endpoint());
  waiting.hello();
  const uint64_t id = worker.post_and_hold(waiting, generate({1, 2, 3}, 500, 5, 4));
  worker.server().drain();
  worker.backend().slow_down(milliseconds(1));
  worker.backend().release();
  ASSERT_TRUE(eventually([&] { return client.status().draining; }));
  expect_error(client.call<ipc::GenerateReply>(generate({1}, 4, 1)).status(), Code::exhausted,
               "draining");
  expect_error(client.call<ipc::ScoreReply>(ipc::Score{{1, 2}}).status(), Code::exhausted,
               "draining");
  expect_error(client.call<ipc::UpdateReady>(ipc::UpdateBegin{}).status(), Code::exhausted,
               "draining");
  const auto reply = waiting.take<ipc::GenerateReply>(id);
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  for (const ipc::Completion& completion : reply->completions) {
    EXPECT_EQ(completion.tokens.size(), 500u);
  }
  EXPECT_TRUE(worker.join().is_ok());
}

TEST(Server, IdleWorkerDrainsAtOnce) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  worker.server().drain();
  EXPECT_TRUE(eventually([&] { return !worker.is_running(); }, milliseconds(2'000)));
  EXPECT_TRUE(worker.join().is_ok());
}

TEST(Server, StopDoesNotWaitForRequests) {
  LocalWorker worker({}, {.max_context = 512, .max_step_tokens = 1, .max_running = 1});
  RawClient client(worker.endpoint());
  client.hello();
  worker.backend().slow_down(milliseconds(1));  // all of it would take minutes
  for (uint64_t i = 0; i < 1000; i++) client.post(generate({1, 2, 3}, 500, i));
  worker.server().drain();
  worker.server().stop();
  EXPECT_TRUE(eventually([&] { return !worker.is_running(); }, milliseconds(5'000)));
  EXPECT_TRUE(worker.join().is_ok());
}

TEST(Server, FailedDeviceIsToldToEverybodyWhoWaitsAndEndsTheLoop) {
  LocalWorker worker;
  worker.expected_end = Code::device;
  RawClient one(worker.endpoint()), other(worker.endpoint()), publisher(worker.endpoint());
  RawClient watcher(worker.endpoint());
  watcher.hello();
  one.hello();
  other.hello();
  publisher.hello();
  UpdateSteps steps(publisher, worker.config(), 2, 10'000, UpdatePolicy::wait);
  ASSERT_TRUE(steps.begin().is_ok());
  ASSERT_TRUE(steps.send_all().is_ok());
  const uint64_t group = worker.post_and_hold(one, generate({1, 2, 3}, 250, 1, 64));
  worker.backend().slow_down(milliseconds(5));
  worker.backend().release();
  const uint64_t commit = steps.post_commit();
  const uint64_t score = other.post(ipc::Score{{1, 2, 3}});
  ASSERT_TRUE(eventually([&] {  // all three have been read
    const ipc::StatusReply status = watcher.status();
    return status.update_state == "committing" && status.waiting > 0;
  }));
  worker.backend().break_now();
  expect_error(one.take<ipc::GenerateReply>(group).status(), Code::device, "device is gone");
  expect_error(other.take<ipc::ScoreReply>(score).status(), Code::device, "device is gone");
  expect_error(publisher.take<ipc::UpdateCommitted>(commit).status(), Code::device,
               "device is gone");
  EXPECT_TRUE(eventually([&] { return !worker.is_running(); }));
}

TEST(Server, BadLimitsAreRefusedByName) {
  LocalWorker worker;  // for a model
  auto backend = make_cpu_backend({best_cpu_isa(), 1});
  const ModelConfig& config = worker.config();
  auto engine = Engine::create(config, **backend, hash_slot(config, **backend, 1), {});
  ASSERT_TRUE(engine.is_ok());
  const bridge_tests::PrivateEndpoint endpoint;
  worker::ServerOptions options;
  options.endpoint = endpoint.name();
  options.limits.heartbeat_ms = 0;
  expect_error(worker::Server::create(**engine, options).status(), Code::invalid, "heartbeat_ms");
  options.limits = {};
  options.limits.max_clients = 0;
  expect_error(worker::Server::create(**engine, options).status(), Code::invalid, "max_clients");
  options.limits = {};
  options.endpoint = worker.endpoint();
  expect_error(worker::Server::create(**engine, options).status(), Code::invalid, "");
}

}  // namespace
}  // namespace exact::worker_tests
