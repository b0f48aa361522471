// journal_support.h owns what the journal's tests share: random records, and a whole journal read.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "journal/async_journal.h"
#include "journal/journal_reader.h"
#include "journal/journal_writer.h"
#include "journal/record_codec.h"
#include "tests/ipc/random_messages.h"
#include "tests/support/temporary_directory.h"

namespace exact::journal_tests {

using namespace exact::journal;

template <class T>
T random_record(uint64_t seed) {
  return ipc::random_message<T>(seed);
}

struct Contents {
  std::vector<Record> records;  // but sessions
  std::vector<SessionRecord> sessions;
  std::vector<Status> damage;
  std::optional<TornTail> torn;
};

inline Contents read_journal(const std::string& path) {
  Contents contents;
  auto reader = JournalReader::open(path);
  EXPECT_TRUE(reader.is_ok()) << reader.status().to_string();
  if (!reader) return contents;
  for (;;) {
    auto record = reader->next();
    if (!record) {
      contents.damage.push_back(record.status());
      EXPECT_TRUE(JournalReader::is_damage(record.status())) << record.status().to_string();
      if (!JournalReader::is_damage(record.status())) break;
      continue;
    }
    if (!*record) break;
    if (auto* session = std::get_if<SessionRecord>(&(*record)->body)) {
      contents.sessions.push_back(std::move(*session));
    } else {
      contents.records.push_back(std::move(**record));
    }
  }
  contents.torn = reader->torn_tail();
  return contents;
}

// What a record must say after it went through a journal: its very bytes.
inline std::string bytes_of(const Record& record) {
  return std::visit([](const auto& body) { return encode_record(body); }, record.body);
}

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Records first..last, each from its id as a seed; completions but for every fifth.
inline std::string record_body(uint64_t id) {
  if (id % 5 == 0) return encode_record(random_record<ScoreRecord>(id));
  return encode_record(random_record<CompletionRecord>(id));
}
inline RecordKind record_kind(uint64_t id) {
  return id % 5 == 0 ? RecordKind::score : RecordKind::completion;
}

inline void write_records(const WriterOptions& options, uint64_t count) {
  auto writer = JournalWriter::open(options, random_record<SessionRecord>(1));
  ASSERT_TRUE(writer.is_ok()) << writer.status().to_string();
  const uint64_t first = writer->report().next_id;
  for (uint64_t id = first; id < first + count; ++id) {
    ASSERT_TRUE(writer->append(record_kind(id), id, 1, record_body(id)).is_ok());
  }
  ASSERT_TRUE(writer->sync().is_ok());
}

// Records 1..count are there, each as it was written, and nothing else.
inline void expect_records(const Contents& contents, uint64_t count) {
  EXPECT_TRUE(contents.damage.empty()) << contents.damage.front().to_string();
  ASSERT_EQ(contents.records.size(), count);
  for (uint64_t id = 1; id <= count; ++id) {
    const Record& record = contents.records[id - 1];
    ASSERT_EQ(record.id, id);
    ASSERT_EQ(bytes_of(record), record_body(id)) << "record " << id;
  }
}

}  // namespace exact::journal_tests
