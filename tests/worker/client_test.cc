// The client against a worker that answers late, wrongly, twice or never.
#include "trainer_bridge/client.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tests/worker/bridge_fixture.h"
#include "tests/worker/scripted_worker.h"

namespace exact::bridge_tests {
namespace {

using bridge::Client;
using bridge::ClientOptions;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Message = ScriptedWorker::Message;

ipc::Generate prompt_of(size_t ids) {
  ipc::Generate request;
  request.prompt.assign(ids, 1);
  return request;
}

// The reply to a rollout, told apart by its seed.
ipc::GenerateReply reply_to(uint64_t seed) {
  ipc::GenerateReply reply;
  reply.seed = seed;
  return reply;
}

ipc::StatusReply status_with(int32_t running) {
  ipc::StatusReply reply;
  reply.running = running;
  return reply;
}

TEST(Client, DeadEndpointIsATimeoutThatNamesIt) {
  const PrivateEndpoint endpoint;
  ClientOptions options;
  options.endpoint = endpoint.name();
  options.timeout = milliseconds(150);
  const auto begin = steady_clock::now();
  const auto client = Client::connect(options);
  ASSERT_FALSE(client.is_ok());
  EXPECT_EQ(client.status().code(), Code::timeout) << client.status().to_string();
  EXPECT_NE(client.status().message().find(endpoint.name()), std::string::npos)
      << client.status().to_string();
  EXPECT_GE(steady_clock::now() - begin, milliseconds(150));
  EXPECT_LT(steady_clock::now() - begin, milliseconds(3000));
}

TEST(Client, TimeoutOfZeroIsRefused) {
  ClientOptions options;
  options.endpoint = "ipc:///nowhere/worker.sock";
  options.timeout = milliseconds(0);
  const auto client = Client::connect(options);
  ASSERT_FALSE(client.is_ok());
  EXPECT_EQ(client.status().code(), Code::invalid);
}

TEST(Client, AnotherContractIdIsRefusedWithBothIds) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(), nullptr);
  ClientOptions options;
  options.endpoint = endpoint.name();
  options.contract_id = std::string(32, 'b');
  const auto client = Client::connect(options);
  ASSERT_FALSE(client.is_ok());
  EXPECT_EQ(client.status().code(), Code::contract_mismatch);
  EXPECT_NE(client.status().message().find(std::string(32, 'a')), std::string::npos);
  EXPECT_NE(client.status().message().find(std::string(32, 'b')), std::string::npos);
}

TEST(Client, RepliesComeInTheOrderTheyFinish) {
  const PrivateEndpoint endpoint;
  std::vector<uint64_t> held;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                              [&](ScriptedWorker& self, const Message& message) {
                                if (message.header.type != ipc::MessageType::generate) return false;
                                held.push_back(message.header.request_id);
                                if (held.size() < 3) return true;
                                for (const size_t i : {2, 0, 1}) {
                                  self.answer(message.peer, held[i], reply_to(held[i]));
                                }
                                return true;
                              });
  const auto client = connect(endpoint.name());
  std::vector<uint64_t> ids;
  for (int i = 0; i < 3; i++) {
    const auto id = client->submit(prompt_of(2));
    ASSERT_TRUE(id.is_ok());
    ids.push_back(*id);
  }
  for (const size_t i : {2, 0, 1}) {
    const auto reply = client->next_reply(milliseconds(5000));
    ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
    EXPECT_EQ(reply->request_id, ids[i]);
    EXPECT_EQ(reply->value.seed, ids[i]);
  }
  EXPECT_EQ(client->in_flight(), 0u);
  EXPECT_EQ(client->next_reply(milliseconds(1)).status().code(), Code::invalid);
}

TEST(Client, RolloutThatEndsDuringAnotherCallIsKept) {
  const PrivateEndpoint endpoint;
  uint64_t rollout = 0;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                              [&](ScriptedWorker& self, const Message& message) {
                                if (message.header.type == ipc::MessageType::generate) {
                                  rollout = message.header.request_id;
                                  return true;
                                }
                                if (message.header.type != ipc::MessageType::status) return false;
                                self.answer(message.peer, rollout, reply_to(77));
                                self.answer(message.peer, message.header.request_id,
                                            status_with(5));
                                return true;
                              });
  const auto client = connect(endpoint.name());
  ASSERT_TRUE(client->submit(prompt_of(1)).is_ok());
  const auto status = client->status();
  ASSERT_TRUE(status.is_ok()) << status.status().to_string();
  EXPECT_EQ(status->running, 5);
  EXPECT_EQ(client->in_flight(), 1u);
  const auto reply = client->next_reply(milliseconds(0));
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  EXPECT_EQ(reply->value.seed, 77u);
}

TEST(Client, AnswersToUnknownRequestsAreDroppedAndCounted) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(
      endpoint.name(), ScriptedWorker::greeting(),
      [&](ScriptedWorker& self, const Message& message) {
        if (message.header.type != ipc::MessageType::status) return false;
        self.answer(message.peer, 999'999, status_with(9));
        self.answer(message.peer, message.header.request_id, status_with(5));
        self.answer(message.peer, message.header.request_id, status_with(6));
        return true;
      });
  const auto client = connect(endpoint.name());
  const auto first = client->status();
  ASSERT_TRUE(first.is_ok());
  EXPECT_EQ(first->running, 5);
  const auto second = client->status();
  ASSERT_TRUE(second.is_ok());
  EXPECT_EQ(second->running, 5);
  // Two strangers, and the first call's second answer.
  EXPECT_EQ(client->dropped_answers(), 3u);
}

TEST(Client, LateAnswerDoesNotReachTheNextCall) {
  const PrivateEndpoint endpoint;
  uint64_t late = 0;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                              [&](ScriptedWorker& self, const Message& message) {
                                if (message.header.type != ipc::MessageType::status) return false;
                                if (late == 0) {
                                  late = message.header.request_id;
                                  return true;
                                }
                                self.answer(message.peer, late, status_with(1));
                                self.answer(message.peer, message.header.request_id,
                                            status_with(2));
                                return true;
                              });
  const auto client = connect(endpoint.name(), milliseconds(500));
  EXPECT_EQ(client->status().status().code(), Code::timeout);
  const auto status = client->status();
  ASSERT_TRUE(status.is_ok()) << status.status().to_string();
  EXPECT_EQ(status->running, 2);
  EXPECT_EQ(client->dropped_answers(), 1u);
}

TEST(Client, AnswerOfAnotherTypeIsCorrupt) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                              [&](ScriptedWorker& self, const Message& message) {
                                if (message.header.type != ipc::MessageType::status) return false;
                                self.answer(message.peer, message.header.request_id, ipc::Pong{});
                                return true;
                              });
  const auto client = connect(endpoint.name());
  const Status status = client->status().status();
  EXPECT_EQ(status.code(), Code::corrupt);
  EXPECT_NE(status.message().find("Pong"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("StatusReply"), std::string::npos) << status.message();
}

TEST(Client, RefusalOfARolloutIsItsReply) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                              [&](ScriptedWorker& self, const Message& message) {
                                if (message.header.type != ipc::MessageType::generate) return false;
                                self.refuse(message.peer, message.header.request_id,
                                            Code::exhausted, "the queue is full");
                                return true;
                              });
  const auto client = connect(endpoint.name());
  const auto id = client->submit(prompt_of(1));
  ASSERT_TRUE(id.is_ok());
  const auto reply = client->next_reply(milliseconds(5000));
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  EXPECT_EQ(reply->request_id, *id);
  EXPECT_EQ(reply->error.code(), Code::exhausted);
  EXPECT_EQ(reply->error.message(), "the queue is full");
}

TEST(Client, MessagesOverTheWorkersLimitsAreRefusedByField) {
  const PrivateEndpoint endpoint;
  ipc::HelloReply greeting = ScriptedWorker::greeting();
  greeting.max_context = 100'000;
  const ScriptedWorker worker(endpoint.name(), greeting, nullptr);
  const auto client = connect(endpoint.name());

  const Status prompt = client->submit(prompt_of(2000)).status();
  EXPECT_EQ(prompt.code(), Code::invalid);
  EXPECT_NE(prompt.message().find("'prompt'"), std::string::npos) << prompt.message();
  EXPECT_NE(prompt.message().find("4096"), std::string::npos) << prompt.message();

  ipc::Generate stops = prompt_of(1);
  stops.stop_ids.assign(2000, 1);
  const Status stop_ids = client->submit(stops).status();
  EXPECT_NE(stop_ids.message().find("'stop_ids'"), std::string::npos) << stop_ids.message();

  const Status tokens = client->score(std::vector<int32_t>(2000, 1)).status();
  EXPECT_NE(tokens.message().find("'tokens'"), std::string::npos) << tokens.message();

  const Status context = client->submit(prompt_of(100'001)).status();
  EXPECT_NE(context.message().find("max_context is 100000"), std::string::npos)
      << context.message();
  EXPECT_EQ(client->in_flight(), 0u);
}

TEST(Client, MoreRolloutsThanTheWorkerTakesAreExhaustedHere) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(), nullptr);
  const auto client = connect(endpoint.name());
  for (int i = 0; i < 4; i++) ASSERT_TRUE(client->submit(prompt_of(1)).is_ok());
  EXPECT_EQ(client->submit(prompt_of(1)).status().code(), Code::exhausted);
  EXPECT_EQ(client->in_flight(), 4u);
}

TEST(Client, WaitingSendsHeartbeats) {
  const PrivateEndpoint endpoint;
  ipc::HelloReply greeting = ScriptedWorker::greeting();
  greeting.heartbeat_ms = 40;
  const ScriptedWorker worker(endpoint.name(), greeting, nullptr);
  const auto client = connect(endpoint.name());
  ASSERT_TRUE(client->submit(prompt_of(1)).is_ok());
  EXPECT_EQ(client->next_reply(milliseconds(1000)).status().code(), Code::timeout);
  EXPECT_GE(worker.pings(), 5);
  EXPECT_LE(worker.pings(), 60);
  EXPECT_EQ(client->in_flight(), 1u);
  EXPECT_EQ(client->dropped_answers(), 0u);
}

TEST(Client, WorkerThatFallsSilentIsLost) {
  const PrivateEndpoint endpoint;
  ipc::HelloReply greeting = ScriptedWorker::greeting();
  greeting.heartbeat_ms = 40;
  const ScriptedWorker worker(endpoint.name(), greeting,
                              [](ScriptedWorker&, const Message& message) {
                                return message.header.type != ipc::MessageType::hello;
                              });
  const auto client = connect(endpoint.name(), milliseconds(500));
  ASSERT_TRUE(client->submit(prompt_of(1)).is_ok());
  const Status status = client->next_reply(milliseconds(30'000)).status();
  EXPECT_EQ(status.code(), Code::peer_lost) << status.to_string();
  EXPECT_NE(status.message().find("silent"), std::string::npos) << status.message();
  EXPECT_LE(worker.pings(), 17);  // no more than a bounded number of unanswered ones
}

// A worker started anew answers heartbeats of strangers with an error: what was in flight is lost,
// and the next request begins with a new greeting.
TEST(Client, ForgottenClientFailsItsRolloutsAndGreetsAgain) {
  const PrivateEndpoint endpoint;
  ipc::HelloReply greeting = ScriptedWorker::greeting();
  greeting.heartbeat_ms = 40;
  bool forgotten = false;
  const ScriptedWorker worker(
      endpoint.name(), greeting, [&](ScriptedWorker& self, const Message& message) {
        if (message.header.type == ipc::MessageType::generate) {
          forgotten = true;
          return true;
        }
        if (message.header.type == ipc::MessageType::hello) forgotten = false;
        if (!forgotten) return false;
        self.refuse(message.peer, message.header.request_id, Code::invalid, "say Hello first");
        return true;
      });
  const auto client = connect(endpoint.name());
  const auto id = client->submit(prompt_of(1));
  ASSERT_TRUE(id.is_ok());
  const auto reply = client->next_reply(milliseconds(5000));
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  EXPECT_EQ(reply->request_id, *id);
  EXPECT_EQ(reply->error.code(), Code::peer_lost);
  EXPECT_NE(reply->error.message().find("say Hello first"), std::string::npos);
  EXPECT_EQ(client->in_flight(), 0u);
  EXPECT_EQ(worker.hellos(), 1);
  EXPECT_TRUE(client->ping().is_ok());
  EXPECT_EQ(worker.hellos(), 2);
}

TEST(Client, ErrorForAnUnreadableMessageReachesWhoeverWaits) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                              [](ScriptedWorker& self, const Message& message) {
                                if (message.header.type != ipc::MessageType::status) return false;
                                self.refuse(message.peer, 0, Code::corrupt, "bad magic");
                                return true;
                              });
  const auto client = connect(endpoint.name());
  const Status status = client->status().status();
  EXPECT_EQ(status.code(), Code::corrupt);
  EXPECT_EQ(status.message(), "bad magic");
}

TEST(Client, GenerateThatTimesOutIsCancelledAndForgotten) {
  const PrivateEndpoint endpoint;
  std::atomic<uint64_t> rollout{0}, cancelled{0};
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(),
                              [&](ScriptedWorker&, const Message& message) {
                                if (message.header.type == ipc::MessageType::generate) {
                                  rollout = message.header.request_id;
                                  return true;
                                }
                                if (message.header.type != ipc::MessageType::cancel) return false;
                                cancelled = message.as<ipc::Cancel>().target_request_id;
                                return true;
                              });
  const auto client = connect(endpoint.name(), milliseconds(500));
  EXPECT_EQ(client->generate(prompt_of(1)).status().code(), Code::timeout);
  EXPECT_EQ(client->in_flight(), 0u);
  EXPECT_TRUE(client->ping().is_ok());  // the cancel was read before this
  EXPECT_NE(rollout.load(), 0u);
  EXPECT_EQ(cancelled.load(), rollout.load());
}

}  // namespace
}  // namespace exact::bridge_tests
