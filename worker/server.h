// server.h owns the worker's loop: one thread that receives messages, steps the engine and answers.
// It takes no signals and prints nothing, so a test can run it in a thread of its own process.
//
// Every message has exactly one answer with its request_id; a rollout may have parts before it.
// What can't be sent at once waits, bounded, and grows coarser (outbox.h). A peer that is gone or
// does not read costs that client its work, never the loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "engine/engine.h"
#include "kernels/base/result.h"
#include "worker/recorder.h"
#include "worker/weights_keeper.h"

namespace exact::worker {

// What clients may use of a worker. Checked by Server::create.
struct ServerLimits {
  int32_t max_clients = 256;                 // connected and not silent
  int32_t max_requests = 1024;               // unanswered generate and score, of one client
  uint64_t max_message_bytes = 64ull << 20;  // of one message, header and body
  int32_t max_queued_messages = 1024;        // per client and direction, in the socket
  uint64_t max_unsent_bytes = 256ull << 20;  // that wait for one client behind its socket's queue
  uint64_t max_bucket_bytes = 256ull << 20;  // half of an update's segment
  int32_t heartbeat_ms = 5'000;              // a client silent for three of these is dead
  int32_t update_timeout_ms = 30'000;        // between two messages of an update
  int32_t messages_per_step = 256;           // read before the engine takes its next step
};

enum class LogLevel : uint8_t { debug, info, warning, error };
// One line of structured text: "event key=value key=value". Called from the loop's thread.
using LogSink = std::function<void(LogLevel, std::string_view)>;

struct ServerOptions {
  std::string endpoint;      // "ipc://..." or "tcp://127.0.0.1:*"
  std::string backend_name;  // for HelloReply: Backend::name()
  std::string device_uuid;   // Backend::device_uuid(); empty: no GPU
  ServerLimits limits;
  LogSink log;  // may be empty
  // Gets each version that goes live; outlives the server; null: none is kept.
  WeightsKeeper* weights_keeper = nullptr;
  journal::AsyncJournal* journal = nullptr;  // outlives the server; null: none is kept
  JournalFull journal_full = JournalFull::block;
};

class Server {
 public:
  // Binds the endpoint: once this returns, clients can connect. The engine must outlive the server;
  // nobody else may touch it while run() runs.
  static Result<std::unique_ptr<Server>> create(Engine& engine, const ServerOptions& options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // The loop. Returns ok when drained or stopped, or the engine's or socket's own failure.
  Status run();

  // Any thread, and signal handlers: both only set a flag, which the loop sees within 100 ms.
  void drain();  // refuse new work, finish and answer what runs, then return from run()
  void stop();   // return from run() at once

  const std::string& endpoint() const;  // as bound: a "*" port is resolved

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exact::worker
