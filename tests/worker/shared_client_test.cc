// One client for several threads, against a worker that answers when the test says so.
#include "trainer_bridge/shared_client.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/worker/bridge_fixture.h"
#include "tests/worker/scripted_worker.h"

namespace exact::bridge_tests {
namespace {

using bridge::Client;
using bridge::ClientOptions;
using bridge::SharedClient;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Message = ScriptedWorker::Message;

std::unique_ptr<SharedClient> share(const std::string& endpoint) {
  ClientOptions options;
  options.endpoint = endpoint;
  options.timeout = milliseconds(20'000);
  auto client = SharedClient::connect(options);
  EXPECT_TRUE(client.is_ok()) << client.status().to_string();
  return client ? std::move(*client) : nullptr;
}

ipc::Generate short_prompt() {
  ipc::Generate request;
  request.prompt = {1};
  return request;
}

// A worker that leaves rollouts unanswered and tells of each.
ScriptedWorker::Script hold_rollouts(std::promise<void>& one_came) {
  return [&one_came](ScriptedWorker&, const Message& message) {
    if (message.header.type != ipc::MessageType::generate) return false;
    one_came.set_value();
    return true;
  };
}

TEST(SharedClient, ACallInterruptsTheWaitForEvents) {
  const PrivateEndpoint endpoint;
  std::promise<void> came;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(), hold_rollouts(came));
  const auto client = share(endpoint.name());
  ASSERT_TRUE(client->with([](Client& c) { return c.submit(short_prompt()); }).is_ok());
  came.get_future().wait();
  std::promise<void> ended;
  std::thread reader([&] {
    while (true) {
      const auto event = client->next_event(milliseconds(60'000));
      if (!event) break;
    }
    ended.set_value();
  });
  const auto begin = steady_clock::now();
  for (int i = 0; i < 200; i++) {
    ASSERT_TRUE(client->with([](Client& c) { return c.ping(); }).is_ok());
  }
  EXPECT_LT(steady_clock::now() - begin, milliseconds(20'000));
  client->close();
  EXPECT_EQ(ended.get_future().wait_for(milliseconds(20'000)), std::future_status::ready);
  reader.join();
}

TEST(SharedClient, EventsOfManyThreadsAllCome) {
  const PrivateEndpoint endpoint;
  ipc::HelloReply hello = ScriptedWorker::greeting();
  hello.max_requests = 1000;
  const ScriptedWorker worker(
      endpoint.name(), hello, [](ScriptedWorker& self, const Message& message) {
        if (message.header.type != ipc::MessageType::generate) return false;
        self.answer(message.peer, message.header.request_id, ipc::GenerateReply{});
        return true;
      });
  const auto client = share(endpoint.name());
  constexpr int kThreads = 4, kEach = 50;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) {
    threads.emplace_back([&] {
      for (int k = 0; k < kEach; k++) {
        EXPECT_TRUE(client->with([](Client& c) { return c.submit(short_prompt()); }).is_ok());
      }
    });
  }
  int events = 0;
  const auto deadline = steady_clock::now() + milliseconds(30'000);
  while (events < kThreads * kEach && steady_clock::now() < deadline) {
    const auto event = client->next_event(milliseconds(1'000));
    ASSERT_TRUE(event.is_ok()) << event.status().to_string();
    if (event->has_value()) events++;
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(events, kThreads * kEach);
}

TEST(SharedClient, WithNothingInFlightAWaitEndsInTimeAndEmpty) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(), nullptr);
  const auto client = share(endpoint.name());
  const auto event = client->next_event(milliseconds(20));
  ASSERT_TRUE(event.is_ok()) << event.status().to_string();
  EXPECT_FALSE(event->has_value());
}

TEST(SharedClient, AClosedClientSaysSoToEveryone) {
  const PrivateEndpoint endpoint;
  const ScriptedWorker worker(endpoint.name(), ScriptedWorker::greeting(), nullptr);
  const auto client = share(endpoint.name());
  client->close();
  EXPECT_EQ(client->next_event(milliseconds(1)).status().code(), Code::cancelled);
  EXPECT_EQ(client->with([](Client& c) { return c.ping(); }).status().code(), Code::cancelled);
}

}  // namespace
}  // namespace exact::bridge_tests
