#include "journal/async_journal.h"

#include <utility>

#include "journal/record_codec.h"

namespace exact::journal {
namespace {

uint64_t now_us() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
}

}  // namespace

template <class Record>
std::string AsyncJournal::encode(const Record& record) {
  return encode_record(record);
}
template std::string AsyncJournal::encode(const CompletionRecord&);
template std::string AsyncJournal::encode(const UpdateRecord&);
template std::string AsyncJournal::encode(const ScoreRecord&);

Result<std::unique_ptr<AsyncJournal>> AsyncJournal::open(AsyncOptions options,
                                                         const SessionRecord& session) {
  if (options.interval_ms < 1) {
    return Status(Code::invalid, "interval_ms is " + std::to_string(options.interval_ms) +
                                     "; it must be at least 1");
  }
  EXACT_ASSIGN(JournalWriter writer, JournalWriter::open(options.writer, session));
  return std::unique_ptr<AsyncJournal>(new AsyncJournal(std::move(options), std::move(writer)));
}

AsyncJournal::AsyncJournal(AsyncOptions options, JournalWriter writer)
    : options_(std::move(options)),
      report_(writer.report()),
      writer_(std::move(writer)),
      next_id_(report_.next_id),
      durable_(report_.next_id - 1) {
  thread_ = std::thread([this] { run(); });
}

AsyncJournal::~AsyncJournal() {
  (void)close();
}

bool AsyncJournal::has_room() const {
  const std::lock_guard lock(mutex_);
  return queued_bytes_ < options_.queue_bytes;
}

Status AsyncJournal::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

Result<uint64_t> AsyncJournal::push(RecordKind kind, std::string body, bool always) {
  Status refused;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.is_ok()) {
      refused = failure_;
    } else if (closing_) {
      refused = Status(Code::cancelled, "the journal is closed");
    } else if (body.size() > kMaxBodyBytes) {
      refused = Status(Code::exhausted, "a record has " + std::to_string(body.size()) +
                                            " bytes, the limit is " +
                                            std::to_string(kMaxBodyBytes));
    } else if (!always && queued_bytes_ > 0 &&
               queued_bytes_ + body.size() > options_.queue_bytes) {
      refused = Status(Code::exhausted, "the journal's queue is full: its disk is too slow");
    } else {
      const uint64_t time_us = now_us();
      const auto add = [&](RecordKind entry_kind, std::string bytes) {
        queued_bytes_ += bytes.size();
        queue_.push_back({entry_kind, next_id_++, time_us, std::move(bytes)});
      };
      if (untold_drops_ > 0) {
        add(RecordKind::drops, encode_record(DropRecord{untold_drops_}));
        untold_drops_ = 0;
      }
      add(kind, std::move(body));
    }
  }
  if (!refused.is_ok()) {
    ++dropped_;
    ++untold_drops_;
    return refused;
  }
  wake_.notify_one();
  return next_id_ - 1;
}

Status AsyncJournal::write(const std::vector<Entry>& batch) {
  for (const Entry& entry : batch) {
    EXACT_RETURN_IF_ERROR(writer_.append(entry.kind, entry.id, entry.time_us, entry.body));
  }
  return writer_.flush();
}

void AsyncJournal::run() {
  using SteadyClock = std::chrono::steady_clock;
  const std::chrono::milliseconds interval(options_.interval_ms);
  auto sync_due = SteadyClock::now() + interval;
  uint64_t written = report_.next_id - 1;
  std::vector<Entry> batch;
  for (bool closing = false; !closing;) {
    {
      std::unique_lock lock(mutex_);
      const auto is_ready = [&] { return closing_ || !queue_.empty(); };
      if (options_.fsync == Fsync::interval && written > durable_up_to()) {
        wake_.wait_until(lock, sync_due, is_ready);
      } else {
        wake_.wait(lock, is_ready);
      }
      batch.swap(queue_);
      closing = closing_;
    }
    if (options_.before_write) options_.before_write();
    uint64_t bytes = 0;
    for (const Entry& entry : batch) bytes += entry.body.size();
    Status status = write(batch);
    if (status.is_ok() && !batch.empty()) written = batch.back().id;
    bool is_durable = options_.fsync == Fsync::none;
    const bool is_due = options_.fsync == Fsync::each || SteadyClock::now() >= sync_due || closing;
    if (status.is_ok() && options_.fsync != Fsync::none && is_due) {
      status = writer_.sync();
      is_durable = true;
      sync_due = SteadyClock::now() + interval;
    }
    if (status.is_ok() && is_durable) durable_.store(written, std::memory_order_release);
    batch.clear();
    const std::lock_guard lock(mutex_);
    queued_bytes_ -= bytes;
    if (!status.is_ok() && failure_.is_ok()) failure_ = status;
    if (closing && !queue_.empty()) closing = false;  // came while the last batch was written
  }
}

Status AsyncJournal::close() {
  if (!thread_.joinable()) return failure();
  // What was dropped and never told of is told at the end.
  if (untold_drops_ > 0 && failure().is_ok()) {
    const uint64_t count = std::exchange(untold_drops_, 0);
    (void)push(RecordKind::drops, encode_record(DropRecord{count}), true);
  }
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_one();
  thread_.join();
  return failure();
}

}  // namespace exact::journal
