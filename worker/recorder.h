// recorder.h owns the worker's side of its journal: what it must remember of a request until its
// record can be made, and the replies that wait for theirs to be durable. Without a journal each
// call does nothing. It never waits for a disk.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "ipc/codec.h"
#include "ipc/messages.h"
#include "journal/async_journal.h"
#include "kernels/base/result.h"

namespace exact::worker {

// When the journal can't take a record.
enum class JournalFull : uint8_t {
  block,  // new requests are refused until it can; those accepted are recorded whatever the queue
  drop,   // the record is left out, counted and logged
};

class Recorder {
 public:
  // `journal` may be null, and outlives this.
  Recorder(journal::AsyncJournal* journal, JournalFull when_full)
      : journal_(journal), when_full_(when_full) {}

  bool blocks() const { return when_full_ == JournalFull::block; }
  // Whether a new request may be accepted. exhausted: the queue is full; else the journal's
  // failure.
  Status check_room() const;

  // ---- what happens to requests, in this order. A client that goes takes nothing back: what the
  // engine made for it is recorded all the same.
  void accepted(RequestId id, const std::string& client, const ipc::Generate& request);
  void accepted(RequestId id, const std::string& client, const ipc::Score& request);
  void allowed(RequestId id, int32_t sample_index, std::span<const int32_t> ids);
  // The record's id, or 0: there is none.
  uint64_t completed(RequestId id, const ipc::Completion& completion);
  void scored(const ScoreResult& result);
  void update_begun(const ipc::UpdateBegin& message);
  void updated(const EngineStatus& live);

  // ---- replies, where they wait for durable records (Fsync::each)
  struct Held {
    std::string peer;
    uint64_t record_id = 0;  // of the last record before it
    ipc::Frames frames;
  };
  // True: it must wait for what has been recorded so far, and has been taken.
  bool hold(const std::string& peer, ipc::Frames& frames);
  // The next reply that need not wait any more, in the order in which they were held.
  std::optional<Held> take_durable();
  // After failure(): all that still wait.
  std::deque<Held> take_all() { return std::move(held_); }
  void forget(const std::string& peer);  // its held replies
  bool holds() const { return !held_.empty(); }

  // The journal's failure, once.
  std::optional<Status> new_failure();
  uint64_t missing() const { return missing_; }  // records left out since the start

 private:
  struct SampleMasks {
    std::vector<int32_t> counts;
    std::vector<int32_t> ids;
    bool is_whole = true;
  };
  struct Kept {
    std::string client;
    ipc::Generate request;
    int32_t samples_left = 0;
    std::unordered_map<int32_t, SampleMasks> masks;
  };
  struct KeptScore {
    std::string client;
    std::vector<int32_t> tokens;
  };
  template <class Record>
  uint64_t append(const Record& record, bool always);

  journal::AsyncJournal* journal_;
  JournalFull when_full_;
  std::unordered_map<RequestId, Kept> kept_;
  std::unordered_map<RequestId, KeptScore> scores_;
  ipc::UpdateBegin update_;  // the last one accepted; without its tensors
  std::deque<Held> held_;
  uint64_t missing_ = 0;
  bool failure_told_ = false;
};

// The same reply without record ids: its records are not in the journal.
ipc::Frames without_record_ids(ipc::Frames frames);

}  // namespace exact::worker
