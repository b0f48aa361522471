// async_journal.h owns the queue before a journal and the one thread that empties it: whoever makes
// records never waits for a disk. Appending encodes the record and takes a lock for a moment.
//
// A record that has an id is either on disk or told of: by failure(), and by the drop record that
// says how many are missing.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "journal/journal_writer.h"
#include "journal/record.h"
#include "kernels/base/result.h"

namespace exact::journal {

enum class Fsync : uint8_t {
  each,      // records that wait together share one fdatasync, and count once it is done
  interval,  // fdatasync every interval_ms; records count once it is done
  none,      // records count once the operating system has them; a power cut may cost some
};

struct AsyncOptions {
  WriterOptions writer;
  Fsync fsync = Fsync::interval;
  int32_t interval_ms = 1000;
  uint64_t queue_bytes = uint64_t{64} << 20;  // that are not written; one record is always taken
  std::function<void()> before_write;         // for tests: runs in the thread, before each batch
};

class AsyncJournal {
 public:
  // As JournalWriter::open; the thread runs from here on.
  static Result<std::unique_ptr<AsyncJournal>> open(AsyncOptions options,
                                                    const SessionRecord& session);
  ~AsyncJournal();  // close()
  AsyncJournal(const AsyncJournal&) = delete;
  AsyncJournal& operator=(const AsyncJournal&) = delete;

  // One thread appends. `append` takes the record if the queue has room, `append_always` in any
  // case; both return its id. exhausted: no room, or the record is over the format's limit; else
  // the failure of the journal. A record that is not taken is counted as dropped.
  template <class Record>
  Result<uint64_t> append(const Record& record) {
    return push(Record::kKind, encode(record), false);
  }
  template <class Record>
  Result<uint64_t> append_always(const Record& record) {
    return push(Record::kKind, encode(record), true);
  }

  bool has_room() const;
  // Every record up to this id has reached what the fsync policy promises.
  uint64_t durable_up_to() const { return durable_.load(std::memory_order_acquire); }
  uint64_t last_id() const { return next_id_ - 1; }  // of the thread that appends
  uint64_t dropped() const { return dropped_; }      // likewise: since the start
  Status failure() const;  // the first error of the disk; it does not go away

  // Writes what waits, syncs unless the policy is none, ends the thread. The failure, if any.
  Status close();

  const OpenReport& report() const { return report_; }
  const AsyncOptions& options() const { return options_; }

 private:
  struct Entry {
    RecordKind kind{};
    uint64_t id = 0;
    uint64_t time_us = 0;
    std::string body;
  };
  AsyncJournal(AsyncOptions options, JournalWriter writer);
  template <class Record>
  static std::string encode(const Record& record);
  Result<uint64_t> push(RecordKind kind, std::string body, bool always);
  void run();
  Status write(const std::vector<Entry>& batch);

  AsyncOptions options_;
  OpenReport report_;
  JournalWriter writer_;  // of the thread

  uint64_t next_id_;
  uint64_t dropped_ = 0;
  uint64_t untold_drops_ = 0;  // since the last drop record
  std::atomic<uint64_t> durable_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Entry> queue_;      // guarded, as are those below
  uint64_t queued_bytes_ = 0;     // of records that are queued or being written
  bool closing_ = false;
  Status failure_;
  std::thread thread_;
};

}  // namespace exact::journal
