// What was written is read, bit for bit, however it was cut into segments; what a dead writer did
// not finish is cut and told of; what is damaged is named and never cut.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/journal/journal_support.h"

namespace exact::journal_tests {
namespace {

namespace fs = std::filesystem;

WriterOptions in(const TemporaryDirectory& scratch, uint64_t segment_bytes = 1 << 20) {
  WriterOptions options;
  options.directory = scratch.file("journal");
  options.segment_bytes = segment_bytes;
  return options;
}

template <class T>
void expect_round_trip() {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const std::string body = encode_record(random_record<T>(seed));
    const auto record = decode_record<T>(std::as_bytes(std::span(body)));
    ASSERT_TRUE(record.is_ok()) << "seed " << seed << ": " << record.status().to_string();
    ASSERT_EQ(encode_record(*record), body) << "seed " << seed;
  }
}

TEST(JournalRecords, ComeBackBitForBit) {
  expect_round_trip<SessionRecord>();
  expect_round_trip<CompletionRecord>();
  expect_round_trip<UpdateRecord>();
  expect_round_trip<ScoreRecord>();
  expect_round_trip<DropRecord>();
}

TEST(JournalWriter, SegmentsOfAnySizeHoldTheSameRecords) {
  for (const uint64_t segment_bytes : {1, 1000, 5000, 1 << 20}) {
    const TemporaryDirectory scratch;
    write_records(in(scratch, segment_bytes), 40);
    const Contents contents = read_journal(scratch.file("journal"));
    expect_records(contents, 40);
    EXPECT_FALSE(contents.torn);
    const auto segments = list_segments(scratch.file("journal"));
    EXPECT_EQ(contents.sessions.size(), segments->size());
    if (segment_bytes == 1) {
      EXPECT_EQ(segments->size(), 40u);
    }
    if (segment_bytes == 1 << 20) {
      EXPECT_EQ(segments->size(), 1u);
    }
  }
}

TEST(JournalWriter, RecordIdsGoOnAfterARestart) {
  const TemporaryDirectory scratch;
  for (int run = 0; run < 3; ++run) write_records(in(scratch), 10);
  write_records(in(scratch), 0);  // a run without a record leaves nothing
  const Contents contents = read_journal(scratch.file("journal"));
  expect_records(contents, 30);
  EXPECT_EQ(contents.sessions.size(), 3u);
}

// At every byte of the last record and of the file's session: cut, told of, kept beside, and the
// journal goes on without a gap.
TEST(JournalWriter, ATailTornAtAnyByteIsCutAndKept) {
  const TemporaryDirectory scratch;
  write_records(in(scratch), 3);
  const std::string path = list_segments(scratch.file("journal"))->front().path;
  const std::string whole = read_file(path);
  std::vector<uint64_t> ends{0};  // of whole frames
  for (auto reader = SegmentReader::open(path); auto frame = *reader->next();) {
    ends.push_back(reader->offset());
  }
  ASSERT_EQ(ends.size(), 5u);
  for (size_t bytes = 0; bytes < whole.size();
       bytes += bytes < ends[1] || bytes >= ends[3] ? 1 : 97) {
    fs::remove_all(scratch.file("journal"));
    fs::create_directory(scratch.file("journal"));
    write_file(path, whole.substr(0, bytes));
    const auto end = *std::prev(std::upper_bound(ends.begin(), ends.end(), bytes));
    const auto records = static_cast<uint64_t>(
        std::max<ptrdiff_t>(std::find(ends.begin(), ends.end(), end) - ends.begin() - 1, 0));
    const Contents before = read_journal(scratch.file("journal"));
    expect_records(before, records);
    EXPECT_EQ(before.torn.has_value(), end != bytes || bytes == 0);
    {
      const auto writer = JournalWriter::open(in(scratch), {});
      ASSERT_TRUE(writer.is_ok()) << writer.status().to_string();
      EXPECT_EQ(writer->report().cut_bytes, bytes - end);
      EXPECT_EQ(writer->report().next_id, records + 1);
      if (bytes > end) {
        EXPECT_EQ(read_file(writer->report().cut_into), whole.substr(end, bytes - end));
      }
    }
    write_records(in(scratch), 3 - records + 1);
    expect_records(read_journal(scratch.file("journal")), 4);
  }
}

// A power cut can leave the file's length without its bytes.
TEST(JournalWriter, ATailOfZerosIsCut) {
  const TemporaryDirectory scratch;
  write_records(in(scratch), 3);
  const std::string path = list_segments(scratch.file("journal"))->front().path;
  write_file(path, read_file(path) + std::string(100'000, '\0'));
  EXPECT_EQ(read_journal(scratch.file("journal")).torn->bytes, 100'000u);
  write_records(in(scratch), 2);
  expect_records(read_journal(scratch.file("journal")), 5);
}

TEST(JournalWriter, DamageInTheMiddleIsNamedAndLeftAlone) {
  const TemporaryDirectory scratch;
  write_records(in(scratch), 5);
  const std::string path = list_segments(scratch.file("journal"))->front().path;
  const std::string whole = read_file(path);
  auto reader = SegmentReader::open(path);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE((*reader->next()).has_value());  // session, 1, 2
  const uint64_t third = reader->offset();
  ASSERT_TRUE((*reader->next()).has_value());
  for (uint64_t at = third; at < reader->offset(); ++at) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x04);
    write_file(path, changed);
    const Contents contents = read_journal(scratch.file("journal"));
    ASSERT_EQ(contents.damage.size(), 1u) << "byte " << at;
    EXPECT_NE(contents.damage[0].message().find("byte " + std::to_string(third)), std::string::npos)
        << contents.damage[0].to_string();
    ASSERT_EQ(contents.records.size(), 4u) << "byte " << at;  // all but the third
    EXPECT_EQ(contents.records.back().id, 5u);
    const auto writer = JournalWriter::open(in(scratch), {});
    EXPECT_EQ(writer.status().code(), Code::corrupt);
    ASSERT_EQ(read_file(path), changed);
  }
}

TEST(JournalReader, MissingSegmentsAreNamed) {
  const TemporaryDirectory scratch;
  write_records(in(scratch, 1), 6);
  fs::remove(scratch.file("journal") + "/" + segment_name(3));
  const Contents contents = read_journal(scratch.file("journal"));
  ASSERT_EQ(contents.damage.size(), 1u);
  EXPECT_NE(contents.damage[0].message().find("record 4 where 3 belongs"), std::string::npos)
      << contents.damage[0].to_string();
  EXPECT_EQ(contents.records.size(), 5u);
}

TEST(JournalReader, WhatIsNoJournalIsNotFound) {
  const TemporaryDirectory scratch;
  EXPECT_EQ(JournalReader::open(scratch.path()).status().code(), Code::not_found);
  EXPECT_EQ(JournalReader::open(scratch.file("none")).status().code(), Code::not_found);
}

TEST(JournalWriter, ASecondWriterIsRefused) {
  const TemporaryDirectory scratch;
  const auto first = JournalWriter::open(in(scratch), {});
  ASSERT_TRUE(first.is_ok());
  EXPECT_EQ(JournalWriter::open(in(scratch), {}).status().code(), Code::exhausted);
}

TEST(JournalWriter, AtTheLimitItStopsLoudlyAndLosesNothing) {
  const TemporaryDirectory scratch;
  WriterOptions options = in(scratch, 2000);
  options.max_bytes = 10'000;
  auto writer = JournalWriter::open(options, random_record<SessionRecord>(1));
  uint64_t id = 0;
  Status status;
  while (status.is_ok()) {
    ++id;
    status = writer->append(record_kind(id), id, 1, record_body(id));
    if (status.is_ok()) status = writer->flush();
  }
  EXPECT_EQ(status.code(), Code::exhausted);
  EXPECT_NE(status.message().find("limit of 10000"), std::string::npos) << status.message();
  EXPECT_EQ(writer->sync().code(), Code::exhausted) << "a failure does not go away";
  expect_records(read_journal(options.directory), id - 1);
}

TEST(JournalWriter, OldestSegmentsGoWhereTheOperatorAsksForIt) {
  const TemporaryDirectory scratch;
  WriterOptions options = in(scratch, 2000);
  options.max_bytes = 10'000;
  options.remove_oldest = true;
  write_records(options, 100);
  const Contents contents = read_journal(options.directory);
  EXPECT_TRUE(contents.damage.empty());
  ASSERT_FALSE(contents.records.empty());
  EXPECT_GT(contents.records.front().id, 1u);
  EXPECT_EQ(contents.records.back().id, 100u);
  uint64_t bytes = 0;
  const auto segments = list_segments(options.directory);
  for (const Segment& segment : *segments) bytes += segment.bytes;
  EXPECT_LE(bytes, options.max_bytes);
}

TEST(JournalWriter, ADirectoryThatCantBeMadeIsNamed) {
  WriterOptions options;
  options.directory = "/proc/exact-journal";
  const Status status = JournalWriter::open(options, {}).status();
  EXPECT_FALSE(status.is_ok());
  EXPECT_NE(status.message().find("/proc/exact-journal"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace exact::journal_tests
