// kill -9 at 200 random moments of a process that writes, always the same journal: it can be read
// and gone on with each time, and every record that was told of as durable is there.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "tests/journal/journal_support.h"

namespace exact::journal_tests {
namespace {

constexpr int kKills = 200;

// The child: appends without end, and writes each durable id into the pipe. Opening may rotate, cut
// and fail under the kill too.
[[noreturn]] void write_for_ever(const std::string& directory, int acknowledged) {
  AsyncOptions options;
  options.writer.directory = directory;
  options.writer.segment_bytes = 20'000;
  options.fsync = Fsync::each;
  auto opened = AsyncJournal::open(options, random_record<SessionRecord>(1));
  if (!opened) ::_exit(3);
  AsyncJournal& journal = **opened;
  uint64_t told = journal.durable_up_to();
  for (;;) {
    if (journal.last_id() < journal.durable_up_to() + 20) {
      const auto id = journal.append(random_record<CompletionRecord>(journal.last_id() + 1));
      if (!id) ::_exit(4);
    }
    const uint64_t durable = journal.durable_up_to();
    if (durable == told) continue;
    told = durable;
    if (::write(acknowledged, &told, sizeof(told)) != sizeof(told)) ::_exit(5);
  }
}

TEST(JournalCrash, KilledAtRandomMomentsNothingAcknowledgedIsLost) {
  const TemporaryDirectory scratch;
  const std::string directory = scratch.file("journal");
  const uint64_t seed = 20260725;
  RecordProperty("seed", std::to_string(seed));
  ipc::Random random(seed);
  uint64_t durable = 0;
  uint64_t torn = 0;
  uint64_t checked = 0;  // records before it have been compared
  for (int kill = 0; kill < kKills; ++kill) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) write_for_ever(directory, ends[1]);
    ::close(ends[1]);
    // Some while it opens, most while it writes.
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(25'000)));
    ::kill(child, SIGKILL);
    int outcome = 0;
    ASSERT_EQ(::waitpid(child, &outcome, 0), child);
    for (uint64_t id = 0; ::read(ends[0], &id, sizeof(id)) == sizeof(id);) durable = id;
    ::close(ends[0]);
    ASSERT_TRUE(WIFSIGNALED(outcome)) << "kill " << kill << ": it ended with " << outcome;
    const auto segments = list_segments(directory);
    if (!segments || segments->empty()) {
      ASSERT_EQ(durable, 0u) << "kill " << kill;
      continue;
    }
    const Contents contents = read_journal(directory);
    ASSERT_TRUE(contents.damage.empty())
        << "kill " << kill << ", seed " << seed << ": " << contents.damage.front().to_string();
    ASSERT_GE(contents.records.size(), durable) << "kill " << kill << ", seed " << seed;
    for (; checked < contents.records.size(); ++checked) {
      const Record& record = contents.records[checked];
      ASSERT_EQ(record.id, checked + 1);
      ASSERT_EQ(bytes_of(record), encode_record(random_record<CompletionRecord>(record.id)));
    }
    if (contents.torn) ++torn;
  }
  RecordProperty("records", std::to_string(checked));
  RecordProperty("torn_tails", std::to_string(torn));
  EXPECT_GT(durable, static_cast<uint64_t>(kKills)) << "it was killed before it wrote";
}

}  // namespace
}  // namespace exact::journal_tests
