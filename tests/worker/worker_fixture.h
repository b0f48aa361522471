// worker_fixture.h owns what the worker's own tests share: a worker in a thread of this process,
// and a client that sends single messages, so that a test can send wrong ones.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "ipc/codec.h"
#include "ipc/socket.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/model_fixture.h"
#include "tests/worker/bridge_fixture.h"
#include "tests/worker/controlled_backend.h"
#include "tests/worker/private_endpoint.h"
#include "worker/server.h"

namespace exact::worker_tests {

using std::chrono::milliseconds;

// The weights of version 1; version v of a test's updates has seed v.
inline constexpr uint64_t kFirstSeed = 1;

class LocalWorker {
 public:
  explicit LocalWorker(const worker::ServerLimits& server_limits = {},
                       const EngineLimits& engine_limits = {.max_context = 256, .page_count = 300},
                       journal::AsyncJournal* journal = nullptr,
                       worker::JournalFull journal_full = worker::JournalFull::block) {
    config_ = bridge_tests::tiny_config();
    auto backend = make_cpu_backend({best_cpu_isa(), 1});
    EXPECT_TRUE(backend.is_ok()) << backend.status().to_string();
    backend_ = std::make_unique<ControlledBackend>(std::move(*backend));
    auto engine = Engine::create(config_, *backend_, hash_slot(config_, *backend_, kFirstSeed),
                                 engine_limits);
    EXPECT_TRUE(engine.is_ok()) << engine.status().to_string();
    engine_ = std::move(*engine);
    worker::ServerOptions options;
    options.endpoint = endpoint_.name();
    options.backend_name = std::string(backend_->name());
    options.limits = server_limits;
    options.journal = journal;
    options.journal_full = journal_full;
    auto server = worker::Server::create(*engine_, options);
    EXPECT_TRUE(server.is_ok()) << server.status().to_string();
    server_ = std::move(*server);
    thread_ = std::thread([this] {
      ended_ = server_->run();
      running_ = false;
    });
  }
  ~LocalWorker() {
    server_->stop();
    backend_->release();
    EXPECT_EQ(join().code(), expected_end);
  }

  // After drain() or stop(): how the loop ended.
  Status join() {
    if (thread_.joinable()) thread_.join();
    return ended_;
  }
  bool is_running() const { return running_; }
  worker::Server& server() { return *server_; }
  ControlledBackend& backend() { return *backend_; }
  const ModelConfig& config() const { return config_; }
  std::string endpoint() const { return endpoint_.name(); }

  // Posts a request and returns when its first step stands still: backend().release() lets it go
  // on.
  template <class Client>
  uint64_t post_and_hold(Client& client, const ipc::Generate& request) {
    backend_->hold();
    const uint64_t id = client.post(request);
    backend_->wait_until_held();
    return id;
  }
  // Lets the step go on once what was posted meanwhile has reached the worker's socket.
  void release() {
    std::this_thread::sleep_for(milliseconds(50));
    backend_->release();
  }

  Code expected_end = Code::ok;

 private:
  bridge_tests::PrivateEndpoint endpoint_;
  ModelConfig config_;
  std::unique_ptr<ControlledBackend> backend_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<worker::Server> server_;
  Status ended_;
  std::atomic<bool> running_{true};
  std::thread thread_;
};

struct Answer {
  ipc::Header header;
  std::string body;
};

// One message at a time, and any bytes that a test wants.
class RawClient {
 public:
  explicit RawClient(const std::string& endpoint, int32_t queue_messages = 1000) {
    ipc::ClientSocketOptions options;
    options.endpoint = endpoint;
    options.queue_messages = queue_messages;
    auto socket = ipc::ClientSocket::connect(options);
    EXPECT_TRUE(socket.is_ok()) << socket.status().to_string();
    socket_ = std::move(*socket);
  }

  Status send_frames(const ipc::Frames& frames) {
    return socket_->send(frames, milliseconds(5'000));
  }
  // Sends without waiting for the answer; its request_id.
  template <class Message>
  uint64_t post(const Message& message) {
    const uint64_t id = next_id_++;
    const Status sent = send_frames(ipc::encode(message, id));
    EXPECT_TRUE(sent.is_ok()) << sent.to_string();
    return id;
  }
  Result<Answer> next_answer(milliseconds timeout = milliseconds(20'000)) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    while (std::chrono::steady_clock::now() < deadline) {
      EXACT_ASSIGN(auto frames, socket_->receive(milliseconds(50)));
      if (!frames) continue;
      EXACT_ASSIGN(const ipc::Header header,
                   ipc::decode_header(std::as_bytes(std::span(frames->header))));
      return Answer{header, std::move(frames->body)};
    }
    return Status(Code::timeout, "no answer");
  }
  // The worker's answer as what it should be, or the error it carries.
  template <class T>
  static Result<T> read(const Answer& answer) {
    const auto body = std::as_bytes(std::span(answer.body));
    if (answer.header.type == ipc::MessageType::error_reply) {
      EXACT_ASSIGN(const auto error, ipc::decode_body<ipc::ErrorReply>(answer.header, body));
      return Status(static_cast<Code>(error.code), error.message);
    }
    if (answer.header.type != T::kType) {
      return Status(Code::corrupt,
                    "answered with " + std::string(ipc::message_type_name(answer.header.type)));
    }
    return ipc::decode_body<T>(answer.header, body);
  }
  template <class T>
  Result<T> take(uint64_t request_id) {
    EXACT_ASSIGN(const Answer answer, next_answer());
    EXPECT_EQ(answer.header.request_id, request_id);
    return read<T>(answer);
  }
  // The answer that comes next must be this message's.
  template <class T, class Message>
  Result<T> call(const Message& message) {
    return take<T>(post(message));
  }
  ipc::HelloReply hello() {
    auto reply = call<ipc::HelloReply>(ipc::Hello{"test", ""});
    EXPECT_TRUE(reply.is_ok()) << reply.status().to_string();
    return reply.is_ok() ? *reply : ipc::HelloReply{};
  }
  ipc::StatusReply status() {
    auto reply = call<ipc::StatusReply>(ipc::StatusQuery{});
    EXPECT_TRUE(reply.is_ok()) << reply.status().to_string();
    return reply.is_ok() ? *reply : ipc::StatusReply{};
  }

 private:
  std::unique_ptr<ipc::ClientSocket> socket_;
  uint64_t next_id_ = 1;
};

inline ipc::Generate generate(std::vector<int32_t> prompt, int32_t max_new_tokens, uint64_t seed,
                              int32_t n = 1) {
  ipc::Generate request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  request.seed = seed;
  request.n = n;
  return request;
}

// Waits for something that the worker does in its own time.
template <class Condition>
bool eventually(Condition condition, milliseconds timeout = milliseconds(10'000)) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (std::chrono::steady_clock::now() < deadline) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return condition();
}

inline bool segment_exists(const std::string& name) {
  return ::access(("/dev/shm/" + name).c_str(), F_OK) == 0;
}

inline void expect_error(const Status& status, Code code, const std::string& words) {
  EXPECT_EQ(status.code(), code) << status.to_string();
  EXPECT_NE(status.message().find(words), std::string::npos)
      << "'" << status.message() << "' does not say '" << words << "'";
}

}  // namespace exact::worker_tests
