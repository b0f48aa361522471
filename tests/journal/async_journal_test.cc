// Appending never waits, whatever the disk does; what has an id is written, what has none is
// counted.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "tests/journal/journal_support.h"

namespace exact::journal_tests {
namespace {

// Holds the journal's thread before a batch.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    waiting_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return is_open_; });
  }
  void wait_until_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_ = false;
  bool waiting_ = false;
};

AsyncOptions in(const TemporaryDirectory& scratch, Fsync fsync) {
  AsyncOptions options;
  options.writer.directory = scratch.file("journal");
  options.fsync = fsync;
  options.interval_ms = 5;
  return options;
}

void wait_until_durable(const AsyncJournal& journal, uint64_t id) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (journal.durable_up_to() < id && std::chrono::steady_clock::now() < end) {
    std::this_thread::yield();
  }
  EXPECT_GE(journal.durable_up_to(), id);
}

TEST(AsyncJournal, EveryPolicyWritesEveryRecordInOrder) {
  for (const Fsync fsync : {Fsync::each, Fsync::interval, Fsync::none}) {
    const TemporaryDirectory scratch;
    auto journal = AsyncJournal::open(in(scratch, fsync), random_record<SessionRecord>(1));
    ASSERT_TRUE(journal.is_ok()) << journal.status().to_string();
    for (uint64_t id = 1; id <= 100; ++id) {
      const auto got = (*journal)->append(random_record<CompletionRecord>(id));
      ASSERT_TRUE(got.is_ok());
      ASSERT_EQ(*got, id);
    }
    wait_until_durable(**journal, 100);  // without close: by its own policy
    const Contents contents = read_journal(scratch.file("journal"));
    ASSERT_EQ(contents.records.size(), 100u);
    for (uint64_t id = 1; id <= 100; ++id) {
      EXPECT_EQ(bytes_of(contents.records[id - 1]),
                encode_record(random_record<CompletionRecord>(id)));
    }
    EXPECT_TRUE((*journal)->close().is_ok());
  }
}

TEST(AsyncJournal, ClosingWritesWhatWaits) {
  const TemporaryDirectory scratch;
  AsyncOptions options = in(scratch, Fsync::interval);
  options.interval_ms = 1'000'000;
  {
    auto journal = AsyncJournal::open(options, {});
    for (uint64_t id = 1; id <= 50; ++id) ASSERT_TRUE((*journal)->append(ScoreRecord{}).is_ok());
    EXPECT_TRUE((*journal)->close().is_ok());
    EXPECT_EQ((*journal)->durable_up_to(), 50u);
    EXPECT_EQ((*journal)->append(ScoreRecord{}).status().code(), Code::cancelled);
  }
  EXPECT_EQ(read_journal(scratch.file("journal")).records.size(), 50u);
}

TEST(AsyncJournal, AFullQueueRefusesAndTheJournalSaysHowManyAreMissing) {
  const TemporaryDirectory scratch;
  Gate gate;
  AsyncOptions options = in(scratch, Fsync::each);
  options.queue_bytes = 1000;
  options.before_write = [&] { gate.pass(); };
  auto opened = AsyncJournal::open(options, {});
  AsyncJournal& journal = **opened;
  ScoreRecord record;
  record.client = std::string(600, 'a');
  ASSERT_TRUE(journal.append(record).is_ok());  // in the thread's hands
  gate.wait_until_held();
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(journal.append(record).status().code(), Code::exhausted);
  }
  EXPECT_EQ(journal.dropped(), 7u);
  const auto taken = journal.append_always(record);  // 2 is the drop record
  ASSERT_TRUE(taken.is_ok());
  EXPECT_EQ(*taken, 3u);
  EXPECT_FALSE(journal.has_room());
  EXPECT_EQ(journal.durable_up_to(), 0u) << "nothing counts before it is written";
  EXPECT_EQ(journal.append(record).status().code(), Code::exhausted);
  gate.open();
  wait_until_durable(journal, 3);
  EXPECT_TRUE(journal.close().is_ok());
  const Contents contents = read_journal(scratch.file("journal"));
  ASSERT_EQ(contents.records.size(), 4u);
  EXPECT_EQ(std::get<DropRecord>(contents.records[1].body).count, 7u);
  EXPECT_EQ(std::get<DropRecord>(contents.records[3].body).count, 1u) << "told of at the end";
}

TEST(AsyncJournal, AFailureStaysAndNothingAfterItCounts) {
  const TemporaryDirectory scratch;
  AsyncOptions options = in(scratch, Fsync::each);
  options.writer.max_bytes = 5000;
  auto opened = AsyncJournal::open(options, {});
  AsyncJournal& journal = **opened;
  Status status;
  uint64_t last = 0;
  while (status.is_ok()) {
    const auto id = journal.append(random_record<CompletionRecord>(1));
    if (id) last = *id;
    status = id.status();
  }
  EXPECT_EQ(status.code(), Code::exhausted);
  EXPECT_EQ(journal.failure().code(), Code::exhausted);
  EXPECT_EQ(journal.close().code(), Code::exhausted);
  EXPECT_LT(journal.durable_up_to(), last);
  EXPECT_EQ(read_journal(scratch.file("journal")).records.size(), journal.durable_up_to());
}

}  // namespace
}  // namespace exact::journal_tests
