// What a client was told stands in the journal, bit for bit; with fsync each, nothing is told
// before.
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "tests/journal/journal_support.h"
#include "tests/worker/program.h"
#include "tests/worker/update_steps.h"
#include "tests/worker/worker_fixture.h"

namespace exact::worker_tests {
namespace {

using journal::AsyncJournal;
using journal::CompletionRecord;
using journal_tests::Contents;
using journal_tests::read_journal;

// Lets the journal's thread through, or not.
class DiskGate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_open_; });
  }
  void set_open(bool open) {
    const std::lock_guard lock(mutex_);
    is_open_ = open;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_ = true;
};

class JournalTest : public testing::Test {
 protected:
  std::unique_ptr<AsyncJournal> open(journal::Fsync fsync, uint64_t max_bytes = 0,
                                     uint64_t queue_bytes = 1 << 20) {
    journal::AsyncOptions options;
    options.writer.directory = directory();
    options.writer.max_bytes = max_bytes;
    options.fsync = fsync;
    options.interval_ms = 5;
    options.queue_bytes = queue_bytes;
    options.before_write = [this] { gate_.pass(); };
    auto opened = AsyncJournal::open(options, {});
    EXPECT_TRUE(opened.is_ok()) << opened.status().to_string();
    return std::move(*opened);
  }
  std::string directory() const { return scratch_ / "journal"; }
  ~JournalTest() override { gate_.set_open(true); }

  ScratchDirectory scratch_;
  DiskGate gate_;
};

std::string bytes_of(ipc::Completion completion) {
  completion.record_id = 0;  // the frame has it
  return ipc::encode(ipc::SampleDone{"", std::move(completion)}, 1).body;
}

std::string bytes_of(const ipc::Generate& request) {
  return ipc::encode(request, 1).body;
}

const CompletionRecord& completion_with(const Contents& contents, uint64_t id) {
  for (const journal::Record& record : contents.records) {
    if (record.id == id) return std::get<CompletionRecord>(record.body);
  }
  ADD_FAILURE() << "no record " << id;
  static const CompletionRecord none;
  return none;
}

TEST_F(JournalTest, RepliesAndScoresEqualTheirRecords) {
  for (const journal::Fsync fsync :
       {journal::Fsync::each, journal::Fsync::interval, journal::Fsync::none}) {
    const auto journal = open(fsync);
    const uint64_t before = journal->last_id();
    ipc::Generate request = generate({1, 2, 3}, 6, 9, 3);
    request.entropy = true;
    request.top_logprobs = 2;
    request.kept_set = true;
    request.prompt_logprobs = true;
    request.top_p = 0.9f;
    ipc::GenerateReply reply;
    ipc::ScoreReply score;
    {
      LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get());
      RawClient client(worker.endpoint());
      client.hello();
      reply = *client.call<ipc::GenerateReply>(request);
      score = *client.call<ipc::ScoreReply>(ipc::Score{{1, 2, 3, 4}});
    }
    ASSERT_TRUE(journal->close().is_ok());
    const Contents contents = read_journal(directory());
    EXPECT_TRUE(contents.damage.empty());
    ASSERT_EQ(contents.records.size(), before + 4);
    for (const ipc::Completion& completion : reply.completions) {
      ASSERT_GT(completion.record_id, before);
      const CompletionRecord& record = completion_with(contents, completion.record_id);
      EXPECT_EQ(bytes_of(record.completion), bytes_of(completion));
      EXPECT_EQ(bytes_of(record.request), bytes_of(request));
      EXPECT_EQ(record.client, "test");
      EXPECT_EQ(record.not_replayable, "");
    }
    const auto& scored = std::get<journal::ScoreRecord>(contents.records.back().body);
    EXPECT_EQ(scored.tokens, (std::vector<int32_t>{1, 2, 3, 4}));
    EXPECT_EQ(scored.logprobs, score.logprobs);
    EXPECT_EQ(scored.weights_digest, score.weights_digest);
  }
}

// In every mode: while the disk stands still, parts with tokens may come, but nothing that ends a
// sample or request.
TEST_F(JournalTest, WithFsyncEachNoReplyComesBeforeItsRecordIsDurable) {
  for (const ipc::ReplyMode mode :
       {ipc::ReplyMode::whole, ipc::ReplyMode::samples, ipc::ReplyMode::tokens}) {
    const auto journal = open(journal::Fsync::each);
    LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get());
    RawClient client(worker.endpoint());
    client.hello();
    gate_.set_open(false);
    ipc::Generate request = generate({1, 2, 3}, 4, 9, 2);
    request.reply_mode = static_cast<uint8_t>(mode);
    const uint64_t id = client.post(request);
    RawClient other(worker.endpoint());
    other.hello();
    ASSERT_TRUE(eventually([&] {
      const ipc::StatusReply status = other.status();
      return status.tokens_generated == 8 && status.running == 0 && status.waiting == 0;
    }));
    const uint64_t durable = journal->durable_up_to();
    for (;;) {
      const auto early = client.next_answer(milliseconds(100));
      if (!early) break;
      EXPECT_EQ(early->header.type, ipc::MessageType::token_chunk);
    }
    EXPECT_EQ(journal->durable_up_to(), durable);
    gate_.set_open(true);
    for (int sample = 0; mode != ipc::ReplyMode::whole && sample < 2; ++sample) {
      const auto done = client.take<ipc::SampleDone>(id);
      ASSERT_TRUE(done.is_ok()) << done.status().to_string();
      EXPECT_LE(done->completion.record_id, journal->durable_up_to());
    }
    const auto reply = client.take<ipc::GenerateReply>(id);
    ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
    EXPECT_EQ(journal->durable_up_to(), journal->last_id());
    EXPECT_EQ(journal->last_id(), durable + 2);
  }
}

TEST_F(JournalTest, DrainingWaitsForTheReplyAndItsRecord) {
  const auto journal = open(journal::Fsync::each);
  LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get());
  RawClient client(worker.endpoint());
  client.hello();
  gate_.set_open(false);
  const uint64_t id = client.post(generate({1, 2}, 3, 1));
  ASSERT_TRUE(eventually([&] { return client.status().tokens_generated == 3; }));
  worker.server().drain();
  EXPECT_FALSE(client.next_answer(milliseconds(250)).is_ok());
  EXPECT_TRUE(worker.is_running());
  gate_.set_open(true);
  EXPECT_TRUE(client.take<ipc::GenerateReply>(id).is_ok());
  EXPECT_TRUE(worker.join().is_ok());
}

TEST_F(JournalTest, UnderBlockAFullQueueRefusesNewRequestsAndRecordsTheOldOnes) {
  const auto journal = open(journal::Fsync::none, 0, 100);
  LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get());
  RawClient client(worker.endpoint());
  client.hello();
  gate_.set_open(false);
  for (int i = 0; i < 2; ++i) {
    const auto reply = client.call<ipc::GenerateReply>(generate({1, 2}, 3, 1, 2));
    if (i == 1) {
      expect_error(reply.status(), Code::exhausted, "queue is full");
    } else {
      ASSERT_TRUE(reply.is_ok());
      EXPECT_EQ(reply->completions[1].record_id, journal->last_id());
    }
  }
  gate_.set_open(true);
  ASSERT_TRUE(eventually([&] { return journal->has_room(); }));
  EXPECT_TRUE(client.call<ipc::GenerateReply>(generate({1, 2}, 3, 1)).is_ok());
  EXPECT_EQ(journal->dropped(), 0u);
}

TEST_F(JournalTest, UnderDropAFullQueueLeavesRecordsOutAndSaysSo) {
  const auto journal = open(journal::Fsync::none, 0, 100);
  {
    LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get(),
                       worker::JournalFull::drop);
    RawClient client(worker.endpoint());
    client.hello();
    gate_.set_open(false);
    for (int i = 0; i < 3; ++i) {
      const auto reply = client.call<ipc::GenerateReply>(generate({1, 2}, 3, 1));
      ASSERT_TRUE(reply.is_ok());
      EXPECT_EQ(reply->completions[0].record_id, i == 0 ? 1u : 0u);
    }
    gate_.set_open(true);
  }
  ASSERT_TRUE(journal->close().is_ok());
  EXPECT_EQ(journal->dropped(), 2u);
  const Contents contents = read_journal(directory());
  ASSERT_EQ(contents.records.size(), 2u);
  EXPECT_EQ(std::get<journal::DropRecord>(contents.records[1].body).count, 2u);
}

// The journal's limit stands for a disk that is full.
TEST_F(JournalTest, AFailedJournalRefusesUnderBlockAndServesUnderDrop) {
  for (const auto full : {worker::JournalFull::block, worker::JournalFull::drop}) {
    for (const auto fsync : {journal::Fsync::each, journal::Fsync::none}) {
      std::filesystem::remove_all(directory());
      const auto journal = open(fsync, 600);
      LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get(), full);
      RawClient client(worker.endpoint());
      client.hello();
      const auto first = client.call<ipc::GenerateReply>(generate({1, 2}, 3, 1));
      ASSERT_TRUE(eventually([&] { return !journal->failure().is_ok(); }));
      const auto second = client.call<ipc::GenerateReply>(generate({1, 2}, 3, 1));
      if (full == worker::JournalFull::drop) {
        ASSERT_TRUE(first.is_ok() && second.is_ok()) << first.status().to_string();
        EXPECT_EQ(second->completions[0].record_id, 0u);
        if (fsync == journal::Fsync::each) {
          EXPECT_EQ(first->completions[0].record_id, 0u);
        }
      } else {
        expect_error(second.status(), Code::exhausted, "journal");
        if (fsync == journal::Fsync::each) {
          expect_error(first.status(), Code::exhausted, "journal failed");
        }
      }
    }
  }
}

TEST_F(JournalTest, MasksAreRecordedWithTheirSample) {
  const auto journal = open(journal::Fsync::none);
  {
    LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get());
    RawClient client(worker.endpoint());
    client.hello();
    ipc::Generate request = generate({1, 2}, 3, 1);
    request.masked = true;
    const uint64_t id = client.post(request);
    for (int32_t index = 0; index < 3; ++index) {
      const auto wanted = client.take<ipc::MaskWanted>(id);
      ASSERT_TRUE(wanted.is_ok()) << wanted.status().to_string();
      std::vector<int32_t> ids{4 + index, 9 + index};
      ASSERT_TRUE(client.call<ipc::AllowReply>(ipc::Allow{id, 0, index, ids}).is_ok());
    }
    ASSERT_TRUE(client.take<ipc::GenerateReply>(id).is_ok());
  }
  ASSERT_TRUE(journal->close().is_ok());
  const Contents contents = read_journal(directory());
  ASSERT_EQ(contents.records.size(), 1u);
  const auto& record = std::get<CompletionRecord>(contents.records[0].body);
  EXPECT_EQ(record.mask_counts, (std::vector<int32_t>{2, 2, 2}));
  EXPECT_EQ(record.mask_ids, (std::vector<int32_t>{4, 9, 5, 10, 6, 11}));
}

TEST_F(JournalTest, AnUpdateIsRecordedWhereItBecameLive) {
  const auto journal = open(journal::Fsync::each);
  ipc::UpdateCommitted committed;
  {
    LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get());
    RawClient client(worker.endpoint());
    client.hello();
    ASSERT_TRUE(client.call<ipc::GenerateReply>(generate({1, 2}, 2, 1)).is_ok());
    UpdateSteps update(client, worker.config(), 2);
    const auto done = update.run();
    ASSERT_TRUE(done.is_ok()) << done.status().to_string();
    committed = *done;
    ASSERT_TRUE(client.call<ipc::GenerateReply>(generate({1, 2}, 2, 1)).is_ok());
  }
  ASSERT_TRUE(journal->close().is_ok());
  const Contents contents = read_journal(directory());
  ASSERT_EQ(contents.records.size(), 3u);
  const auto& update = std::get<journal::UpdateRecord>(contents.records[1].body);
  EXPECT_EQ(update.weight_version, 2u);
  EXPECT_EQ(update.weights_digest, committed.weights_digest);
  EXPECT_EQ(update.policy, static_cast<uint8_t>(UpdatePolicy::recompute));
  EXPECT_FALSE(update.at_start);
  const auto& after = std::get<CompletionRecord>(contents.records[2].body);
  EXPECT_EQ(after.completion.versions[0].weights_digest, committed.weights_digest);
}

// A cancelled sample is a prefix, and recorded as one.
TEST_F(JournalTest, CancelledSamplesAreRecorded) {
  const auto journal = open(journal::Fsync::each);
  {
    LocalWorker worker({}, {.max_context = 256, .page_count = 300}, journal.get());
    RawClient client(worker.endpoint());
    client.hello();
    const uint64_t id = worker.post_and_hold(client, generate({1, 2}, 200, 1, 2));
    const uint64_t cancel = client.post(ipc::Cancel{id});
    worker.release();
    ASSERT_TRUE(client.take<ipc::CancelReply>(cancel).is_ok());
    const auto reply = client.take<ipc::GenerateReply>(id);
    ASSERT_TRUE(reply.is_ok());
    for (const ipc::Completion& completion : reply->completions) {
      EXPECT_GT(completion.record_id, 0u);
    }
  }
  ASSERT_TRUE(journal->close().is_ok());
  EXPECT_EQ(read_journal(directory()).records.size(), 2u);
}

}  // namespace
}  // namespace exact::worker_tests
