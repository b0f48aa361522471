// Messages between a server and its clients: delivered whole and in order, or refused by name.
#include "ipc/socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>
#include <zmq.hpp>

#include "tests/support/temporary_directory.h"

namespace exact::ipc {
namespace {

using namespace std::chrono_literals;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

constexpr auto kSoon = 20'000ms;  // what must come, comes long before

class SocketTest : public ::testing::Test {
 protected:
  std::unique_ptr<ServerSocket> serve(uint64_t max_bytes = 1 << 20, int32_t queue = 100) {
    auto server = ServerSocket::bind({endpoint_, max_bytes, queue});
    EXPECT_TRUE(server.is_ok()) << server.status().to_string();
    return std::move(server).value();
  }
  std::unique_ptr<ClientSocket> join(uint64_t max_bytes = 1 << 20, int32_t queue = 100) {
    auto client = ClientSocket::connect({endpoint_, max_bytes, queue});
    EXPECT_TRUE(client.is_ok()) << client.status().to_string();
    return std::move(client).value();
  }

  TemporaryDirectory directory_;
  std::string endpoint_ = "ipc://" + directory_.path() + "/w.sock";
};

Incoming receive(ServerSocket& server) {
  auto incoming = server.receive(kSoon);
  EXPECT_TRUE(incoming.is_ok()) << incoming.status().to_string();
  EXPECT_TRUE(incoming->has_value()) << "no message came";
  return incoming->value_or(Incoming());
}

// The next message's body; "" when none came.
std::string receive(ClientSocket& client, std::chrono::milliseconds timeout = kSoon) {
  auto frames = client.receive(timeout);
  EXPECT_TRUE(frames.is_ok()) << frames.status().to_string();
  return frames.is_ok() && frames->has_value() ? (*frames)->body : std::string();
}

void send(ClientSocket& client, const std::string& body) {
  const Status status = client.send({"header", body}, kSoon);
  EXPECT_TRUE(status.is_ok()) << status.to_string();
}

// Both directions work.
void expect_alive(ServerSocket& server, ClientSocket& client) {
  send(client, "question");
  const Incoming incoming = receive(server);
  EXPECT_TRUE(incoming.error.is_ok()) << incoming.error.to_string();
  EXPECT_EQ(incoming.body, "question");
  EXPECT_TRUE(server.send(incoming.peer, {"header", "answer"}).is_ok());
  EXPECT_EQ(receive(client), "answer");
}

TEST_F(SocketTest, AnswersReachTheClientThatAsked) {
  auto server = serve();
  auto first = join(), second = join();
  send(*first, "one");
  const Incoming one = receive(*server);
  send(*second, "two");
  const Incoming two = receive(*server);
  EXPECT_EQ(one.header, "header");
  EXPECT_EQ(one.body, "one");
  EXPECT_NE(one.peer, two.peer);
  EXPECT_TRUE(server->send(two.peer, {"h", "for two"}).is_ok());
  EXPECT_TRUE(server->send(one.peer, {"h", "for one"}).is_ok());
  EXPECT_EQ(receive(*first), "for one");
  EXPECT_EQ(receive(*second), "for two");
}

TEST_F(SocketTest, EmptyAndBinaryFramesTravelWhole) {
  auto server = serve();
  auto client = join();
  const std::string binary("\0\xff\n\0x", 5);
  ASSERT_TRUE(client->send({binary, ""}, kSoon).is_ok());
  const Incoming incoming = receive(*server);
  EXPECT_EQ(incoming.header, binary);
  EXPECT_EQ(incoming.body, "");
}

TEST_F(SocketTest, NothingToReceiveIsAnEmptyOptional) {
  auto server = serve();
  auto client = join();
  for (const auto timeout : {-5ms, 0ms, 20ms}) {
    const auto start = steady_clock::now();
    auto incoming = server->receive(timeout);
    ASSERT_TRUE(incoming.is_ok());
    EXPECT_FALSE(incoming->has_value());
    auto frames = client->receive(timeout);
    ASSERT_TRUE(frames.is_ok());
    EXPECT_FALSE(frames->has_value());
    EXPECT_GE(steady_clock::now() - start, 2 * timeout - 2ms);
    EXPECT_LT(steady_clock::now() - start, 2s);
  }
}

TEST_F(SocketTest, AnswerToNobodyIsPeerLost) {
  auto server = serve();
  EXPECT_EQ(server->send("nobody", {"h", "b"}).code(), Code::peer_lost);
  EXPECT_EQ(server->send("", {"h", "b"}).code(), Code::peer_lost);
  auto client = join();
  expect_alive(*server, *client);
}

TEST_F(SocketTest, AnswerToAClientThatLeftIsPeerLost) {
  auto server = serve();
  auto client = join();
  send(*client, "last words");
  const Incoming incoming = receive(*server);
  client.reset();
  Status status;
  const auto deadline = steady_clock::now() + kSoon;
  while (status.is_ok() && steady_clock::now() < deadline) {
    status = server->send(incoming.peer, {"h", "b"});
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(status.code(), Code::peer_lost) << status.to_string();
}

TEST_F(SocketTest, FullQueueIsExhaustedAndLosesNothingItTook) {
  auto server = serve(1 << 20, 4);
  auto slow = join(1 << 20, 4), other = join();
  send(*slow, "hello");
  const std::string peer = receive(*server).peer;
  int accepted = 0;
  Status status;
  while (accepted < 1'000 && status.is_ok()) {
    status = server->send(peer, {"h", std::to_string(accepted) + std::string(100'000, '.')});
    if (status.is_ok()) ++accepted;
  }
  EXPECT_EQ(status.code(), Code::exhausted) << accepted << " accepted";
  expect_alive(*server, *other);
  for (int index = 0; index < accepted; ++index) {
    ASSERT_EQ(receive(*slow).substr(0, 5), (std::to_string(index) + ".....").substr(0, 5));
  }
  expect_alive(*server, *slow);
}

TEST_F(SocketTest, SendWithNoWorkerThereTimesOut) {
  auto client = join(1 << 20, 4);
  for (int index = 0; index < 4; ++index) send(*client, "queued");
  const auto start = steady_clock::now();
  const Status status = client->send({"h", "one too many"}, 50ms);
  EXPECT_EQ(status.code(), Code::timeout) << status.to_string();
  EXPECT_GE(steady_clock::now() - start, 49ms);
}

TEST_F(SocketTest, OversizeMessageCostsItsSenderAlone) {
  auto server = serve(4'096);
  auto large = join(), other = join();
  send(*large, std::string(4'096, 'x'));  // just fits
  EXPECT_EQ(receive(*server).body.size(), 4'096u);
  expect_alive(*server, *other);
  send(*large, std::string(4'097, 'x'));
  auto incoming = server->receive(200ms);
  ASSERT_TRUE(incoming.is_ok());
  EXPECT_FALSE(incoming->has_value()) << "an oversize message was delivered";
  expect_alive(*server, *other);
}

TEST_F(SocketTest, ClientRefusesOversizeAnswers) {
  auto server = serve();
  auto client = join(4'096);
  send(*client, "q");
  ASSERT_TRUE(server->send(receive(*server).peer, {"h", std::string(4'097, 'x')}).is_ok());
  EXPECT_EQ(receive(*client, 200ms), "");
}

TEST_F(SocketTest, WrongNumberOfFramesIsAnErrorWithAPeerToAnswer) {
  auto server = serve();
  zmq::context_t context(1);
  zmq::socket_t raw(context, zmq::socket_type::dealer);
  raw.set(zmq::sockopt::linger, 0);
  raw.connect(endpoint_);
  for (const int count : {1, 3, 4, 1'000}) {
    for (int part = 0; part < count; ++part) {
      raw.send(zmq::str_buffer("part"),
               part + 1 < count ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
    const Incoming incoming = receive(*server);
    EXPECT_EQ(incoming.error.code(), Code::corrupt);
    EXPECT_THAT(incoming.error.message(), HasSubstr(std::to_string(count) + " frames"));
    EXPECT_EQ(incoming.body, "");
    EXPECT_TRUE(server->send(incoming.peer, {"h", "refused"}).is_ok());
  }
  auto client = join();
  expect_alive(*server, *client);
}

TEST_F(SocketTest, AnswerOfWrongFramesIsCorrupt) {
  zmq::context_t context(1);
  zmq::socket_t raw(context, zmq::socket_type::router);
  raw.set(zmq::sockopt::linger, 0);
  raw.bind(endpoint_);
  auto client = join();
  send(*client, "q");
  zmq::message_t peer, part;
  ASSERT_TRUE(raw.recv(peer).has_value());
  while (raw.recv(part).has_value() && part.more()) continue;
  raw.send(peer, zmq::send_flags::sndmore);
  raw.send(zmq::str_buffer("alone"), zmq::send_flags::none);
  EXPECT_EQ(client->receive(kSoon).status().code(), Code::corrupt);
}

TEST_F(SocketTest, PeerCannotTakeAnothersPlace) {
  auto server = serve();
  auto client = join();
  send(*client, "q");
  const std::string peer = receive(*server).peer;
  zmq::context_t context(1);
  zmq::socket_t thief(context, zmq::socket_type::dealer);
  thief.set(zmq::sockopt::linger, 0);
  thief.set(zmq::sockopt::routing_id, "claimed");
  thief.connect(endpoint_);
  thief.send(zmq::str_buffer("h"), zmq::send_flags::sndmore);
  thief.send(zmq::str_buffer("b"), zmq::send_flags::none);
  ASSERT_EQ(receive(*server).peer, "claimed");
  zmq::socket_t second(context, zmq::socket_type::dealer);
  second.set(zmq::sockopt::linger, 0);
  second.set(zmq::sockopt::routing_id, "claimed");
  second.connect(endpoint_);
  second.send(zmq::str_buffer("h"), zmq::send_flags::sndmore);
  second.send(zmq::str_buffer("stolen"), zmq::send_flags::none);
  auto stolen = server->receive(200ms);
  ASSERT_TRUE(stolen.is_ok());
  EXPECT_FALSE(stolen->has_value()) << "a second peer was let in under a taken id";
  EXPECT_TRUE(server->send(peer, {"h", "mine"}).is_ok());
  EXPECT_EQ(receive(*client), "mine");
}

TEST_F(SocketTest, ClientFindsAWorkerThatWasStartedAnew) {
  auto server = serve();
  auto client = join();
  expect_alive(*server, *client);
  server.reset();
  server = serve();
  expect_alive(*server, *client);
}

TEST_F(SocketTest, ClientMayComeBeforeItsWorker) {
  auto client = join();
  send(*client, "early");
  auto server = serve();
  EXPECT_EQ(receive(*server).body, "early");
}

TEST(LoopbackSocket, StarPortIsResolved) {
  for (const char* text : {"tcp://127.0.0.1:*", "tcp://localhost:*"}) {
    auto server = ServerSocket::bind({text, 1 << 20, 100});
    ASSERT_TRUE(server.is_ok()) << server.status().to_string();
    EXPECT_THAT((*server)->endpoint(), ::testing::MatchesRegex("tcp://127\\.0\\.0\\.1:[0-9]+"));
    auto client = ClientSocket::connect({(*server)->endpoint(), 1 << 20, 100});
    ASSERT_TRUE(client.is_ok()) << client.status().to_string();
    expect_alive(**server, **client);
    const Status second = ServerSocket::bind({(*server)->endpoint(), 1 << 20, 100}).status();
    EXPECT_EQ(second.code(), Code::invalid) << second.to_string();
  }
}

TEST(LoopbackSocket, LimitsOfZeroAreRefused) {
  EXPECT_EQ(ServerSocket::bind({"tcp://127.0.0.1:*", 1 << 20, 0}).status().code(), Code::invalid);
  EXPECT_EQ(ServerSocket::bind({"tcp://127.0.0.1:*", 0, 1}).status().code(), Code::invalid);
  EXPECT_EQ(ServerSocket::bind({"tcp://127.0.0.1:*", UINT64_MAX, 1}).status().code(),
            Code::invalid);
  EXPECT_EQ(ClientSocket::connect({"tcp://127.0.0.1:80", 1 << 20, -1}).status().code(),
            Code::invalid);
}

void ignore_signal(int) {}

TEST_F(SocketTest, SignalEndsAWaitEarlyWithNothing) {
  struct sigaction action {
  }, before{};
  action.sa_handler = ignore_signal;  // no SA_RESTART
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  auto server = serve();
  auto client = join();
  for (const bool is_server : {true, false}) {
    const auto start = steady_clock::now();
    const std::jthread signaller([waiting = ::pthread_self()](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        std::this_thread::sleep_for(20ms);
        ::pthread_kill(waiting, SIGUSR1);
      }
    });
    if (is_server) {
      const auto incoming = server->receive(30s);
      ASSERT_TRUE(incoming.is_ok()) << incoming.status().to_string();
      EXPECT_FALSE(incoming->has_value());
    } else {
      const auto frames = client->receive(30s);
      ASSERT_TRUE(frames.is_ok()) << frames.status().to_string();
      EXPECT_FALSE(frames->has_value());
    }
    EXPECT_LT(steady_clock::now() - start, 20s);
  }
  ::sigaction(SIGUSR1, &before, nullptr);
}

}  // namespace
}  // namespace exact::ipc
