// weight_session.h owns the worker's half of a weight update, one at a time:
//
//   idle --begin--> receiving --commit--> committing --live--> idle
//                       |                                        ^
//                       +--- abort, timeout, any error, lost ----+
//
// Until commit the staging slot can be dropped at any moment, and the live weights serve on. After
// commit nothing can go wrong any more: the engine makes the new version live when its policy says.
// A message that does not belong to the open update is refused and does it no harm; a mistake of
// the update's own sender ends it, with a sentence that says why.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "ipc/bucket_plan.h"
#include "ipc/messages.h"
#include "ipc/weight_shm.h"
#include "kernels/base/result.h"
#include "worker/clients.h"
#include "worker/manifest.h"

namespace exact::worker {

struct WeightSessionLimits {
  uint64_t max_bucket_bytes = 0;
  std::chrono::milliseconds timeout{0};  // between two messages of an update
};

class WeightSession {
 public:
  enum class State : uint8_t { idle, receiving, committing };

  WeightSession(Engine& engine, const WeightSessionLimits& limits)
      : engine_(engine), limits_(limits) {}

  Result<ipc::UpdateReady> begin(const std::string& peer, const ipc::UpdateBegin& message,
                                 Clock::time_point now);
  Result<ipc::UpdateBucketDone> bucket(const std::string& peer, const ipc::UpdateBucket& message,
                                       Clock::time_point now);
  // ok: the answer to `request_id` is due when take_commit() gives it.
  Status commit(const std::string& peer, uint64_t request_id, const ipc::UpdateCommit& message);
  Result<ipc::UpdateAborted> abort(const std::string& peer, const ipc::UpdateAbort& message);

  // Ends an update whose sender has been silent for too long; says so if there was one.
  std::optional<Status> expire(Clock::time_point now);
  // The peer is gone: its update ends, unless it is committed, which stands. True if one ended.
  bool drop(const std::string& peer);

  struct Commit {
    std::string peer;  // empty: nobody waits for the answer any more
    uint64_t request_id = 0;
  };
  // The engine says that the committed version is live: back to idle.
  Commit take_commit();

  State state() const { return state_; }
  std::string_view state_name() const;
  // The commit of this peer that waits for its answer, if any.
  std::optional<uint64_t> waiting_request(const std::string& peer) const;

 private:
  Status check_owner(const std::string& peer, uint64_t session) const;
  Status check_begin(const ipc::UpdateBegin& message) const;
  Status copy_bucket(uint64_t index);
  void close();
  void release();                        // what only the receiving state needs
  Status give_up(const Status& reason);  // close(), and the reason with what it means

  Engine& engine_;
  WeightSessionLimits limits_;
  State state_ = State::idle;
  std::string peer_;
  uint64_t session_ = 0;
  uint64_t commit_request_ = 0;
  WeightVersion version_;
  UpdatePolicy policy_ = UpdatePolicy::wait;
  Clock::time_point deadline_;

  WeightSlot* slot_ = nullptr;
  std::unique_ptr<ipc::WeightSegment> segment_;
  std::optional<ipc::BucketPlan> plan_;
  uint64_t next_bucket_ = 0;
  std::vector<std::byte> copy_;          // of a tensor that lies whole in a bucket
  std::vector<ExpectedTensor> tensors_;  // in the order of the stream
};

}  // namespace exact::worker
