// Mutations of real segments. Whatever a file holds, reading it ends, takes memory in proportion to
// the file, and gives only records that encode to the very bytes that were read.
//
// EXACT_FUZZ_SECONDS=600 runs it for so long; EXACT_FUZZ_CORPUS=DIR keeps the smallest file of each
// outcome that tests/journal/corpus does not have.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

#include "kernels/base/digest.h"
#include "tests/ipc/allocations.h"
#include "tests/ipc/random.h"
#include "tests/journal/journal_support.h"

namespace exact::journal_tests {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kRounds = 20'000;
constexpr size_t kBodyChecksumAt = 32, kHeaderChecksumAt = 40;

void overwrite(std::string& text, size_t at, uint64_t value) {
  if (at >= text.size()) return;
  std::memcpy(text.data() + at, &value, std::min(sizeof(value), text.size() - at));
}

std::string small_segment(ipc::Random& random) {
  std::string bytes;
  append_frame(bytes, RecordKind::session, 1, 5, encode_record(random_record<SessionRecord>(1)));
  const uint64_t count = random.below(5);
  for (uint64_t id = 1; id <= count; ++id) {
    const uint64_t seed = random.next();
    switch (random.below(4)) {
      case 0:
        append_frame(bytes, RecordKind::completion, id, 5,
                     encode_record(random_record<CompletionRecord>(seed)));
        break;
      case 1:
        append_frame(bytes, RecordKind::update, id, 5,
                     encode_record(random_record<UpdateRecord>(seed)));
        break;
      case 2:
        append_frame(bytes, RecordKind::score, id, 5,
                     encode_record(random_record<ScoreRecord>(seed)));
        break;
      default:
        append_frame(bytes, RecordKind::drops, id, 5, encode_record(DropRecord{seed}));
    }
  }
  return bytes;
}

// Offsets of the frames of an unchanged segment.
std::vector<size_t> frames_of(const std::string& bytes) {
  std::vector<size_t> at;
  for (size_t offset = 0; offset + kFrameBytes <= bytes.size();) {
    const auto header = parse_frame(std::as_bytes(std::span(bytes)).subspan(offset, kFrameBytes));
    if (!header) break;
    at.push_back(offset);
    offset += kFrameBytes + header->body_bytes;
  }
  return at;
}

uint64_t lying_number(ipc::Random& random, size_t bytes) {
  switch (random.below(4)) {
    case 0:
      return random.below(bytes + 2);
    case 1:
      return uint64_t{1} << random.below(64);
    case 2:
      return (uint64_t{1} << 62) + random.below(4);
    default:
      return UINT64_MAX - random.below(16);
  }
}

void mutate(std::string& bytes, ipc::Random& random) {
  const std::vector<size_t> frames = frames_of(bytes);
  for (uint64_t change = 1 + random.below(3); change > 0; --change) {
    const size_t at = random.below(bytes.size() + 1);
    switch (random.below(6)) {
      case 0:
        bytes.resize(at);
        break;
      case 1:
        bytes.insert(at, random.bytes(1 + random.below(60)));
        break;
      case 2:
        bytes.erase(at, 1 + random.below(60));
        break;
      case 3:
        overwrite(bytes, at, lying_number(random, bytes.size()));
        break;
      case 4:
        bytes.insert(at, bytes.substr(random.below(bytes.size() + 1), random.below(500)));
        break;
      default:
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
    }
  }
  // Half of them with checksums that are right again, so that what lies behind them is reached.
  if (random.below(2) == 0) return;
  for (const size_t frame : frames) {
    if (frame + kFrameBytes > bytes.size()) break;
    uint64_t body_bytes = 0;
    std::memcpy(&body_bytes, bytes.data() + frame + 24, sizeof(body_bytes));
    const size_t left = bytes.size() - frame - kFrameBytes;
    const auto all = std::as_bytes(std::span(bytes));
    if (body_bytes <= left) {
      overwrite(bytes, frame + kBodyChecksumAt,
                digest64(all.subspan(frame + kFrameBytes, static_cast<size_t>(body_bytes))));
    }
    overwrite(bytes, frame + kHeaderChecksumAt, digest64(all.subspan(frame, kHeaderChecksumAt)));
  }
}

// A sentence without its numbers and without what it quotes: which one it is.
std::string kind_of(const std::string& text) {
  std::string kind;
  bool is_quoted = false;
  for (const char c : text) {
    if (c == '\'') is_quoted = !is_quoted;
    if (!is_quoted && (c < '0' || c > '9')) kind += c;
  }
  return kind;
}

// A file in memory, which needs no disk to be read by its name.
class MemoryFile {
 public:
  MemoryFile() : file_(::memfd_create("segment", MFD_CLOEXEC)) { EXPECT_TRUE(file_.is_open()); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_.get()); }
  void assign(const std::string& bytes) {
    ASSERT_EQ(::ftruncate(file_.get(), 0), 0);
    ASSERT_EQ(::pwrite(file_.get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
  }

 private:
  ipc::FileDescriptor file_;
};

// Reads the file; what it ended with, in words.
std::string outcome_of(const std::string& path, const std::string& bytes) {
  auto reader = JournalReader::open(path);
  EXPECT_TRUE(reader.is_ok()) << reader.status().to_string();
  std::string outcome;
  size_t calls = 0;
  for (;; ++calls) {
    EXPECT_LE(calls, 2 * bytes.size() / kFrameBytes + 4) << "it does not end";
    if (calls > 2 * bytes.size() / kFrameBytes + 4) break;
    const uint64_t before = ipc::allocated_bytes();
    const auto record = reader->next();
    EXPECT_LE(ipc::allocated_bytes() - before, 16 * bytes.size() + (size_t{256} << 10));
    if (!record) {
      EXPECT_TRUE(JournalReader::is_damage(record.status())) << record.status().to_string();
      std::string words = record.status().to_string();
      words.erase(0, words.find(path) == words.npos ? 0 : words.find(path) + path.size());
      outcome += kind_of(words) + "\n";
      continue;
    }
    if (!*record) break;
    const std::string body = bytes_of(**record);
    EXPECT_EQ((*record)->bytes, kFrameBytes + body.size());
    EXPECT_EQ(bytes.substr((*record)->offset + kFrameBytes, body.size()), body)
        << "a record that is not what the file says";
  }
  if (reader->torn_tail()) outcome += "torn: " + kind_of(reader->torn_tail()->why) + "\n";
  return outcome;
}

TEST(JournalFuzz, AnyFileEndsInRecordsAndStatuses) {
  const char* seconds = std::getenv("EXACT_FUZZ_SECONDS");
  const char* corpus = std::getenv("EXACT_FUZZ_CORPUS");
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::seconds(seconds == nullptr ? 0 : std::atoi(seconds));
  MemoryFile file;
  std::map<std::string, std::string> smallest;  // by outcome
  uint64_t rounds = 0;
  const uint64_t seed = 20260725;
  for (; rounds < kRounds || std::chrono::steady_clock::now() < end; ++rounds) {
    ipc::Random random(seed + rounds);
    std::string bytes = small_segment(random);
    mutate(bytes, random);
    file.assign(bytes);
    const std::string outcome = outcome_of(file.path(), bytes);
    ASSERT_FALSE(HasFailure()) << "seed " << seed << ", round " << rounds;
    if (std::count(outcome.begin(), outcome.end(), '\n') > 1) continue;
    const auto found = smallest.find(outcome);
    if (found == smallest.end() || found->second.size() > bytes.size()) smallest[outcome] = bytes;
  }
  RecordProperty("rounds", std::to_string(rounds));
  RecordProperty("outcomes", std::to_string(smallest.size()));
  EXPECT_GT(smallest.size(), 20u) << "the mutations reach too little";
  if (corpus == nullptr) return;
  for (const auto& [outcome, bytes] : smallest) {
    write_file(std::string(corpus) + "/" + digest128(bytes).to_hex() + ".bin", bytes);
  }
}

TEST(JournalFuzz, TheCorpusReadsWithoutHarm) {
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(EXACT_SOURCE_DIR "/tests/journal/corpus")) {
    const std::string path = entry.path().string();
    outcome_of(path, read_file(path));
    EXPECT_FALSE(HasFailure()) << path;
    ++files;
  }
  EXPECT_GT(files, 0u);
}

}  // namespace
}  // namespace exact::journal_tests
