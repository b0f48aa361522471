// socket.h owns the two ends of a connection: a ROUTER for the worker, a DEALER for a client.
// ZeroMQ is seen by socket.cc alone; its exceptions stop there. Nothing blocks longer than asked,
// and a call that would block says so with an empty optional or a Status, never by dropping.
//
// Refused: endpoints that other users could reach (endpoint.h), a second server on one endpoint,
// frames above max_message_bytes (ZeroMQ cuts that peer's connection, and no other).
// One thread per socket, but for wake(). A signal ends a receive() early with "nothing came".
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "ipc/codec.h"
#include "ipc/endpoint.h"
#include "kernels/base/result.h"

namespace exact::ipc {

struct ServerSocketOptions {
  std::string endpoint;  // default_endpoint(), "ipc:///...", "tcp://127.0.0.1:*"
  uint64_t max_message_bytes = 64ull << 20;  // of one frame
  int32_t queue_messages = 1000;             // per client and direction
};

struct Incoming {
  std::string peer;  // for send(); assigned by ZeroMQ at each connection, it names nobody
  std::string header;
  std::string body;
  Status error;  // corrupt: not exactly two frames; header and body are then empty
};

class ServerSocket {
 public:
  // invalid: a malformed endpoint, an unsafe directory, or an endpoint that another process serves;
  // unsupported: an endpoint beyond this machine.
  static Result<std::unique_ptr<ServerSocket>> bind(const ServerSocketOptions& options);
  ~ServerSocket();
  ServerSocket(const ServerSocket&) = delete;
  ServerSocket& operator=(const ServerSocket&) = delete;

  // Empty: nothing came before the timeout, or a signal did. A timeout of 0 only looks.
  Result<std::optional<Incoming>> receive(std::chrono::milliseconds timeout);

  // Never waits. exhausted: the peer's queue is full; peer_lost: no such peer (any more).
  Status send(const std::string& peer, const Frames& frames);

  const std::string& endpoint() const;  // as bound: the port of "tcp://127.0.0.1:*" is filled in

 private:
  class Impl;
  explicit ServerSocket(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct ClientSocketOptions {
  std::string endpoint;
  uint64_t max_message_bytes = 256ull << 20;  // of one frame
  int32_t queue_messages = 1000;              // per direction
};

// Connects in the background, and again after the worker went away: what connect() accepts may have
// nobody behind it yet. The server then sees a new peer.
class ClientSocket {
 public:
  static Result<std::unique_ptr<ClientSocket>> connect(const ClientSocketOptions& options);
  ~ClientSocket();
  ClientSocket(const ClientSocket&) = delete;
  ClientSocket& operator=(const ClientSocket&) = delete;

  // Empty as for the server. corrupt: a message that is not exactly two frames.
  Result<std::optional<Frames>> receive(std::chrono::milliseconds timeout);

  // timeout: the queue stayed full.
  Status send(const Frames& frames, std::chrono::milliseconds timeout);

  // Any thread: a receive() that waits, or else the next one that would, ends as if by a signal.
  void wake();

 private:
  class Impl;
  explicit ClientSocket(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exact::ipc
