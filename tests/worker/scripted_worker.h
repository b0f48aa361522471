// scripted_worker.h owns a worker that says what a test tells it to: the other end of a client's
// socket without an engine behind it.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "ipc/codec.h"
#include "ipc/socket.h"
#include "tests/worker/private_endpoint.h"

namespace exact::bridge_tests {

// Answers Hello and Ping by itself; everything else is the script's, which runs in its thread.
class ScriptedWorker {
 public:
  struct Message {
    const std::string& peer;
    const ipc::Header& header;
    const std::string& body;
    template <class T>
    T as() const {
      auto value = ipc::decode_body<T>(header, std::as_bytes(std::span(body)));
      EXPECT_TRUE(value.is_ok()) << value.status().to_string();
      return value.is_ok() ? *value : T{};
    }
  };
  // True: the script has dealt with the message, also by leaving it unanswered.
  using Script = std::function<bool(ScriptedWorker&, const Message&)>;

  explicit ScriptedWorker(const std::string& endpoint, ipc::HelloReply hello, Script script)
      : hello_(std::move(hello)), script_(std::move(script)) {
    ipc::ServerSocketOptions options;
    options.endpoint = endpoint;
    auto socket = ipc::ServerSocket::bind(options);
    EXPECT_TRUE(socket.is_ok()) << socket.status().to_string();
    socket_ = std::move(*socket);
    thread_ = std::thread([this] { loop(); });
  }
  ~ScriptedWorker() {
    stop_ = true;
    thread_.join();
  }

  static ipc::HelloReply greeting() {
    ipc::HelloReply hello;
    hello.server = "scripted";
    hello.contract_id = std::string(32, 'a');
    hello.max_context = 512;
    hello.max_message_bytes = 4096;
    hello.max_requests = 4;
    hello.heartbeat_ms = 5000;
    return hello;
  }

  template <class T>
  void answer(const std::string& peer, uint64_t request_id, const T& message) {
    const Status sent = socket_->send(peer, ipc::encode(message, request_id));
    EXPECT_TRUE(sent.is_ok()) << sent.to_string();
  }
  void refuse(const std::string& peer, uint64_t request_id, Code code, const std::string& why) {
    answer(peer, request_id, ipc::ErrorReply{static_cast<uint8_t>(code), why});
  }
  int pings() const { return pings_; }
  int hellos() const { return hellos_; }

 private:
  void loop() {
    while (!stop_) {
      auto incoming = socket_->receive(std::chrono::milliseconds(10));
      if (!incoming.is_ok() || !incoming->has_value()) continue;
      handle(**incoming);
    }
  }
  void handle(const ipc::Incoming& incoming) {
    const auto header = ipc::decode_header(std::as_bytes(std::span(incoming.header)));
    ASSERT_TRUE(header.is_ok()) << header.status().to_string();
    if (header->type == ipc::MessageType::ping) pings_++;
    if (header->type == ipc::MessageType::hello) hellos_++;
    if (script_ && script_(*this, Message{incoming.peer, *header, incoming.body})) return;
    if (header->type == ipc::MessageType::hello) answer(incoming.peer, header->request_id, hello_);
    if (header->type == ipc::MessageType::ping) {
      answer(incoming.peer, header->request_id, ipc::Pong{1});
    }
  }

  ipc::HelloReply hello_;
  Script script_;
  std::unique_ptr<ipc::ServerSocket> socket_;
  std::atomic<bool> stop_{false};
  std::atomic<int> pings_{0}, hellos_{0};
  std::thread thread_;
};

}  // namespace exact::bridge_tests
