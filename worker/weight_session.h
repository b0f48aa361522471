// weight_session.h owns the worker's half of a weight update, one at a time, over whichever
// transport it comes; update_state.h has its states.
//
// Until commit the staging slot can be dropped at any moment, and the live weights serve on. After
// commit nothing can go wrong any more: the engine makes the new version live when its policy says.
// A message that does not belong to the open update is refused and does it no harm; a mistake of
// the update's own sender ends it, with a sentence that says why.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "ipc/messages.h"
#include "ipc/weight_channel.h"
#include "kernels/base/result.h"
#include "worker/clients.h"
#include "worker/manifest.h"
#include "worker/update_state.h"
#include "worker/weight_channels.h"

namespace exact::worker {

struct WeightSessionLimits {
  uint64_t max_bucket_bytes = 0;
  std::chrono::milliseconds timeout{0};  // between two messages of an update
};

class WeightSession {
 public:
  WeightSession(Engine& engine, const WeightSessionLimits& limits, WeightChannels channels)
      : engine_(engine), limits_(limits), channels_(std::move(channels)) {}
  ~WeightSession();  // before the engine
  WeightSession(const WeightSession&) = delete;
  WeightSession& operator=(const WeightSession&) = delete;

  Result<ipc::UpdateReady> begin(const std::string& peer, const ipc::UpdateBegin& message,
                                 Clock::time_point now);
  // ok: the answer to `request_id` is due when take_answers() gives it.
  Status bucket(const std::string& peer, uint64_t request_id, const ipc::UpdateBucket& message,
                Clock::time_point now);
  // ok: the answer to `request_id` is due when take_commit() gives it.
  Status commit(const std::string& peer, uint64_t request_id, const ipc::UpdateCommit& message);
  Result<ipc::UpdateAborted> abort(const std::string& peer, const ipc::UpdateAbort& message);

  // Takes what has arrived of the buckets that were announced; never waits. Call it each turn while
  // is_moving().
  void advance(Clock::time_point now);
  bool is_moving() const { return !announced_.empty(); }

  struct BucketAnswer {
    std::string peer;
    uint64_t request_id = 0;
    Result<ipc::UpdateBucketDone> done;
  };
  // Of buckets that were copied, or whose update has ended; each once, in the buckets' order.
  std::vector<BucketAnswer> take_answers() { return std::exchange(answers_, {}); }

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

  UpdateState state() const { return state_; }
  uint32_t transports() const { return channels_.offered(); }
  // Whether a commit or a bucket of this peer with this id waits for its answer.
  bool is_unanswered(const std::string& peer, uint64_t request_id) const;

 private:
  struct Announced {  // a bucket that is not copied yet
    uint64_t request_id = 0;
    uint64_t index = 0;
  };

  Status check_owner(const std::string& peer, uint64_t session) const;
  Status check_begin(const ipc::UpdateBegin& message) const;
  Result<ipc::UpdateReady> open(const ipc::UpdateBegin& message);
  // True when the oldest bucket that was announced is copied.
  Result<bool> take_bucket();
  Status copy_pieces(const ipc::BucketPieces& bucket);
  Status finish_bucket(const ipc::BucketPieces& bucket);
  Status verify_whole();
  void move(UpdateEvent event);
  void close(UpdateEvent why, const Status& reason);
  void release();                        // what only an open update needs
  Status give_up(const Status& reason);  // close(), and the reason with what it means
  Status with_outcome(const Status& reason) const;

  Engine& engine_;
  WeightSessionLimits limits_;
  WeightChannels channels_;
  UpdateState state_ = UpdateState::idle;
  std::string peer_;
  uint64_t session_ = 0;
  uint64_t commit_request_ = 0;
  WeightVersion version_;
  UpdatePolicy policy_ = UpdatePolicy::wait;
  std::string weights_digest_;  // what the whole model's shall be; empty: not compared
  Clock::time_point deadline_;

  WeightSlot* slot_ = nullptr;
  std::unique_ptr<ipc::WeightChannel> channel_;
  uint64_t next_bucket_ = 0;                      // to be announced
  std::deque<Announced> announced_;               // at most kBucketsInFlight
  std::optional<ipc::BucketPieces> device_copy_;  // the oldest of them, on its way to the slot
  std::vector<BucketAnswer> answers_;
  std::vector<std::byte> copy_;          // of a tensor that lies whole in a bucket
  std::vector<ExpectedTensor> tensors_;  // in the order of the stream
};

}  // namespace exact::worker
