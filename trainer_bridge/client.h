// client.h owns a trainer's connection to a worker: one ZeroMQ DEALER, one thread (several share a
// connection through shared_client.h). Every call has a deadline and returns a Result; nothing
// throws, prints or retries behind the caller's back.
//
// A worker takes a client for dead that was silent for three heartbeats (HelloReply::heartbeat_ms)
// and cancels its rollouts. Calls that wait send heartbeats; a trainer that computes for longer
// with rollouts in flight calls ping() now and then, or finds them failed as peer_lost.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "ipc/messages.h"
#include "kernels/base/result.h"

namespace exact::bridge {

struct ClientOptions {
  std::string endpoint;         // "ipc:///run/user/1000/exact-rollout/worker.sock"
  std::string name = "client";  // free text for the worker's log
  std::string contract_id;      // 32 hex digits: refuse a worker with another; empty: accept any
  std::chrono::milliseconds timeout{30'000};          // of every call but next_*()
  std::chrono::milliseconds connect_timeout{10'000};  // of connect(), if it is the shorter one
  uint64_t max_message_bytes = 256ull << 20;          // of one answer
};

struct Reply {
  uint64_t request_id = 0;
  Status error;              // not ok: the worker refused or failed the request
  ipc::GenerateReply value;  // when error is ok
};

// The ids of an allow() were not taken: the sample still waits, unless it has ended meanwhile.
struct MaskRefused {
  int32_t sample_index = 0;
  int32_t index = 0;
  Status error;
};

// One thing that happened to a rollout. Of one sample: its chunks in order (adjacent ones that
// nobody had taken are one), then SampleDone; the Reply is a rollout's last.
struct Event {
  uint64_t request_id = 0;
  std::variant<ipc::TokenChunk, ipc::SampleDone, ipc::MaskWanted, MaskRefused, Reply> what;
};

class Client {
 public:
  // Connects and shakes hands. timeout: nobody answers; contract_mismatch: says both ids.
  // Later calls shake hands again when the worker has forgotten this client; worker() is then new.
  static Result<std::unique_ptr<Client>> connect(const ClientOptions& options);
  ~Client();

  const ipc::HelloReply& worker() const;

  // ---- rollouts. submit() returns at once. Then either next_reply(): replies in the order they
  // finish, whatever the reply_mode; or next_event(): all that happens, as it comes (the Reply then
  // has no completions that a SampleDone had). Both: timeout when nothing came in time; heartbeats
  // are sent while waiting. A part that can't be (a gap in the chunks, a sum that is not the
  // completion) ends its rollout with a Reply whose error is corrupt.
  // submit: invalid: a message larger than the worker takes, by the field's name; exhausted:
  // worker().max_requests are in flight.
  Result<uint64_t> submit(const ipc::Generate& request);
  Result<Reply> next_reply(std::chrono::milliseconds timeout);
  Result<Event> next_event(std::chrono::milliseconds timeout);
  // Any thread: a next_event() that waits, or else the next one that would, ends as cancelled.
  void interrupt();
  Result<ipc::GenerateReply> generate(
      const ipc::Generate& request);         // submit and wait for it; cancelled after a timeout
  Result<bool> cancel(uint64_t request_id);  // true: it was in flight; its reply still comes
  // Answers a MaskWanted (only next_event() tells of them): the ids, ascending, that token `index`
  // may be. Does not wait; what the worker refuses comes as a MaskRefused event.
  Status allow(uint64_t request_id, int32_t sample_index, int32_t index,
               std::span<const int32_t> ids);
  size_t in_flight() const;          // submitted, and their Reply not yet returned
  uint64_t dropped_answers() const;  // answers that came when nobody waited for them any more

  Result<ipc::ScoreReply> score(const std::vector<int32_t>& tokens);
  Result<ipc::StatusReply> status();
  Result<ipc::Pong> ping();

  // ---- weight updates, one message each; WeightPublisher is the way to use them
  Result<ipc::UpdateReady> update_begin(const ipc::UpdateBegin& message);
  Result<uint64_t> send_bucket(uint64_t session, uint64_t index);  // does not wait; a request id
  Result<ipc::UpdateBucketDone> wait_bucket(uint64_t request_id);
  Result<ipc::UpdateCommitted> update_commit(uint64_t session);
  // Answers of buckets that nobody has waited for are dropped.
  Result<ipc::UpdateAborted> update_abort(uint64_t session);

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exact::bridge
