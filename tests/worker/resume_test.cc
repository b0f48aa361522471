// A run that is killed, at any moment and in the middle of a line, ends with the very bytes of one
// that ran in peace; and never goes on with what another run left.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/worker/bridge_fixture.h"
#include "tests/worker/program.h"
#include "worker/partial_file.h"

namespace exact::worker_tests {
namespace {

using worker::PartialFile;
using worker::RunFacts;

const RunFacts kFacts{{"weights digest", "ab"}, {"seed", "7"}};
const std::vector<int32_t> kSamples{2, 1, 3};

std::string text_for(size_t prompt, int32_t sample) {
  return "{\"p\": " + std::to_string(prompt) + ", \"s\": " + std::to_string(sample) + "}";
}

std::string whole_output() {
  std::string all;
  for (size_t p = 0; p < kSamples.size(); p++) {
    for (int32_t s = 0; s < kSamples[p]; s++) all += text_for(p, s) + "\n";
  }
  return all;
}

Status append_all(PartialFile& file) {
  for (size_t p = kSamples.size(); p-- > 0;) {  // in another order than the output's
    for (int32_t s = kSamples[p]; s-- > 0;) {
      EXACT_RETURN_IF_ERROR(file.append(p, s, text_for(p, s)));
    }
  }
  return {};
}

TEST(PartialFile, OutputIsInTheOrderOfThePrompts) {
  const ScratchDirectory scratch;
  auto file = PartialFile::open(scratch / "out", kFacts, kSamples, false);
  ASSERT_TRUE(file.is_ok()) << file.status().to_string();
  EXPECT_EQ(file->resumed(), 0u);
  ASSERT_TRUE(append_all(*file).is_ok());
  ASSERT_TRUE(append_all(*file).is_ok());  // again: nothing is written twice
  EXPECT_FALSE(std::filesystem::exists(scratch / "out"));
  ASSERT_TRUE(file->finish().is_ok());
  EXPECT_EQ(text_of(scratch / "out"), whole_output());
  EXPECT_FALSE(std::filesystem::exists(scratch / "out.partial"));
}

// Every prefix of a partial file, and every prefix with garbage behind it, can be gone on with.
TEST(PartialFile, CutAnywhereItGoesOn) {
  const ScratchDirectory scratch;
  {
    auto file = PartialFile::open(scratch / "out", kFacts, kSamples, false);
    ASSERT_TRUE(file.is_ok() && append_all(*file).is_ok());
  }
  const std::string whole = text_of(scratch / "out.partial");
  const size_t header = whole.find('\n') + 1;
  size_t most_resumed = 0;
  for (size_t bytes = whole.size() % 3; bytes <= whole.size(); bytes += 3) {
    for (const std::string tail : {"", "0 1 00 x\n", "\n", "5 0 0123456789abcdef {}\n"}) {
      if (bytes < header && !tail.empty()) continue;   // then it is no file of ours
      if (bytes % 21 != 0 && !tail.empty()) continue;  // each ends with an fsync
      write_text(scratch / "out.partial", whole.substr(0, bytes) + tail);
      auto file = PartialFile::open(scratch / "out", kFacts, kSamples, false);
      ASSERT_TRUE(file.is_ok()) << bytes << ": " << file.status().to_string();
      most_resumed = std::max(most_resumed, file->resumed());
      ASSERT_TRUE(append_all(*file).is_ok());
      ASSERT_TRUE(file->finish().is_ok());
      ASSERT_EQ(text_of(scratch / "out"), whole_output()) << bytes << " bytes, then " << tail;
    }
  }
  EXPECT_EQ(most_resumed, kSamples.size());
}

TEST(PartialFile, LineWithAChangedByteIsNotUsed) {
  const ScratchDirectory scratch;
  {
    auto file = PartialFile::open(scratch / "out", kFacts, kSamples, false);
    ASSERT_TRUE(file.is_ok() && append_all(*file).is_ok());
  }
  const std::string whole = text_of(scratch / "out.partial");
  for (size_t at = whole.find('\n') + 1; at < whole.size(); at += 2) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    write_text(scratch / "out.partial", changed);
    auto file = PartialFile::open(scratch / "out", kFacts, kSamples, false);
    ASSERT_TRUE(file.is_ok()) << file.status().to_string();
    ASSERT_TRUE(append_all(*file).is_ok());
    ASSERT_TRUE(file->finish().is_ok());
    ASSERT_EQ(text_of(scratch / "out"), whole_output()) << "byte " << at;
  }
}

TEST(PartialFile, AnotherRunIsRefusedByWhatDiffers) {
  const ScratchDirectory scratch;
  ASSERT_TRUE(PartialFile::open(scratch / "out", kFacts, kSamples, false).is_ok());
  const auto refused = [&](const RunFacts& facts, const std::string& words) {
    const Status status = PartialFile::open(scratch / "out", facts, kSamples, false).status();
    EXPECT_EQ(status.code(), Code::invalid);
    EXPECT_NE(status.message().find(words), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("--restart"), std::string::npos) << status.message();
  };
  refused({{"weights digest", "cd"}, {"seed", "7"}},
          "another weights digest: it was ab, now it is cd");
  refused({{"weights digest", "ab"}, {"seed", "8"}}, "another seed: it was 7, now it is 8");
  refused({{"weights digest", "ab"}, {"seed", "7"}, {"n", "1"}}, "another n: it was not there");
  write_text(scratch / "out.partial", "{\"prompt\": [1]}\n");
  refused(kFacts, "not what an unfinished run");
  EXPECT_TRUE(PartialFile::open(scratch / "out", kFacts, kSamples, true).is_ok());
  EXPECT_TRUE(PartialFile::open(scratch / "out", kFacts, kSamples, false).is_ok());
}

TEST(PartialFile, TwoWritersAreOneTooMany) {
  const ScratchDirectory scratch;
  const auto first = PartialFile::open(scratch / "out", kFacts, kSamples, false);
  ASSERT_TRUE(first.is_ok());
  const Status second = PartialFile::open(scratch / "out", kFacts, kSamples, true).status();
  EXPECT_NE(second.message().find("another process writes"), std::string::npos);
}

// ---- the program
class KilledGenerate : public testing::Test {
 protected:
  KilledGenerate() {
    write_text(scratch_ / "config.json", bridge_tests::kTinyConfig);
    EXPECT_EQ(run_program({"make-model", "--config", scratch_ / "config.json", "--seed", "1",
                           "--out", scratch_ / "model"})
                  .exit_code,
              0);
    std::string prompts;
    for (int i = 0; i < 40; i++) {
      prompts += "{\"prompt\": [" + std::to_string(i + 1) + ", 7], \"id\": " + std::to_string(i) +
                 ", \"seed\": " + std::to_string(100 + i) +
                 ", \"max_new_tokens\": " + std::to_string(4 + 17 * i % 90) + "}\n";
    }
    write_text(scratch_ / "in", prompts);
  }
  std::vector<std::string> words(const std::string& out,
                                 const std::vector<std::string>& more = {}) {
    std::vector<std::string> all{"generate",
                                 "--model",
                                 scratch_ / "model",
                                 "--prompts",
                                 scratch_ / "in",
                                 "--out",
                                 scratch_ / out,
                                 "--n",
                                 "3",
                                 "--threads",
                                 "1"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  ScratchDirectory scratch_;
};

TEST_F(KilledGenerate, EndsWithTheBytesOfOneThatRanInPeace) {
  constexpr uint64_t kSeed = 20261125;
  std::mt19937_64 random(kSeed);
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(run_program(words("calm")).exit_code, 0);
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - begin);
  const std::string calm = text_of(scratch_ / "calm");
  ASSERT_EQ(std::count(calm.begin(), calm.end(), '\n'), 120);

  constexpr int kKills = 6;  // at most, of one output
  const auto longest_ms = 1 + static_cast<uint64_t>(took.count()) / 2;
  int killed = 0, cut = 0, resumed = 0;
  for (int round = 0; round < 3; round++) {
    const std::string out = "out" + std::to_string(round);
    for (int attempt = 0; attempt <= kKills; attempt++) {
      const ScratchDirectory output;
      Program program(output, words(out));
      if (attempt < kKills) {
        std::this_thread::sleep_for(std::chrono::milliseconds(random() % longest_ms));
        program.signal(SIGKILL);
      }
      const int end = program.wait();
      resumed += program.out().find("resumed") != std::string::npos;
      if (end == 0) break;
      ASSERT_EQ(end, -SIGKILL) << program.err();
      EXPECT_FALSE(std::filesystem::exists(scratch_ / out));
      killed++;
      const std::string partial = scratch_ / (out + ".partial");
      std::error_code error;
      const auto bytes = std::filesystem::file_size(partial, error);
      if (error || bytes == 0 || random() % 3 != 0) continue;
      // As if the kill had come in the middle of writing.
      ASSERT_EQ(::truncate(partial.c_str(), static_cast<off_t>(random() % bytes)), 0);
      cut++;
    }
    EXPECT_EQ(text_of(scratch_ / out), calm) << "seed " << kSeed << ", round " << round;
    EXPECT_FALSE(std::filesystem::exists(scratch_ / (out + ".partial")));
  }
  EXPECT_GE(killed, 3);
  EXPECT_GE(resumed, 1);
  std::printf("%d kills, %d cuts, %d resumed\n", killed, cut, resumed);
}

TEST_F(KilledGenerate, ScheduleMayChangeAndOptionsMayNot) {
  const ScratchDirectory output;
  {
    Program program(output, words("out"));
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (text_of(scratch_ / "out.partial").size() < 2'000 &&
           std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    program.signal(SIGKILL);
    ASSERT_EQ(program.wait(), -SIGKILL) << "it was done before it could be killed";
  }
  const auto other = run_program(words("out", {"--top-k", "5"}));
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(other.err.find("another top_k: it was 0, now it is 5"), std::string::npos) << other.err;
  write_text(scratch_ / "in", text_of(scratch_ / "in") + "{\"prompt\": [1]}\n");
  const auto prompts = run_program(words("out"));
  EXPECT_NE(prompts.err.find("another prompts file"), std::string::npos) << prompts.err;
  const auto fresh = run_program(words("out", {"--restart", "--page-size", "16"}));
  EXPECT_EQ(fresh.exit_code, 0) << fresh.err;
  EXPECT_EQ(fresh.out.find("resumed"), std::string::npos) << fresh.out;
  ASSERT_EQ(run_program(words("calm")).exit_code, 0);
  EXPECT_EQ(text_of(scratch_ / "out"), text_of(scratch_ / "calm"));
}

}  // namespace
}  // namespace exact::worker_tests
