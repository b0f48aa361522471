// A journal that a GPU made (tests/tools/make_journal), made again here: every bit of every sample,
// of a model of 54 M parameters under five versions of its weights. On a Hopper GPU a journal that
// the CPU makes is replayed too.
#include <gtest/gtest.h>

#include <cstdio>

#include "kernels/make_backend.h"
#include "replay/plan.h"
#include "replay/replayer.h"
#include "tests/replay/journal_maker.h"
#include "tests/support/temporary_directory.h"

namespace exact {
namespace {

constexpr uint64_t kVersions = 5;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kLastRecord = 14;  // a sanitizer's build is slow
#else
constexpr uint64_t kLastRecord = UINT64_MAX;
#endif

// Replays on `kind` what `directory` holds; every sample must be there, equal, in each mode.
void expect_equal(const std::string& directory, const std::string& kind, uint64_t last,
                  std::initializer_list<replay::Mode> modes) {
  const auto config = load_config(EXACT_GOLDEN_DIR "/journal");
  ASSERT_TRUE(config.is_ok()) << config.status().to_string();
  BackendOptions options;
  options.kind = kind;
  const auto backend = make_backend(options);
  ASSERT_TRUE(backend.is_ok()) << backend.status().to_string();
  const auto run = replay::read_run(directory, 1, last);
  ASSERT_TRUE(run.is_ok()) << run.status().to_string();
  EXPECT_TRUE(run->damage.empty()) << run->damage.front();
  const replay::Plan plan = replay::make_plan(run->samples);
  HashWeights weights(*config, kVersions);
  for (const replay::Mode mode : modes) {
    const auto report =
        replay::run_plan(plan, run->samples, mode, 7, *config, **backend, weights, [](int64_t) {});
    ASSERT_TRUE(report.is_ok()) << report.status().to_string();
    EXPECT_TRUE(report->missing.empty());
    EXPECT_EQ(report->findings.size(), 0u) << mode_name(mode);
    EXPECT_GT(report->tokens, 0u);
    EXPECT_EQ(static_cast<int64_t>(report->tokens), plan.token_count);
    EXPECT_EQ(report->recorded_digest, report->replayed_digest);
    std::printf("%s, %s: %llu pieces, %llu tokens, %zu differ\n", kind.c_str(),
                std::string(mode_name(mode)).c_str(),
                static_cast<unsigned long long>(report->pieces),
                static_cast<unsigned long long>(report->tokens), report->findings.size());
  }
}

TEST(GoldenJournal, OfAGpuIsMadeAgainOnTheCpu) {
  expect_equal(EXACT_GOLDEN_DIR "/journal", "cpu", kLastRecord, {replay::Mode::batches});
}

TEST(GoldenJournal, OfTheCpuIsMadeAgainOnAGpu) {
  BackendOptions options;
  options.kind = "cuda";
  const auto gpu = make_backend(options);
  if (!gpu) GTEST_SKIP() << gpu.status().message();
  const TemporaryDirectory directory;
  const auto config = load_config(EXACT_GOLDEN_DIR "/journal");
  ASSERT_TRUE(config.is_ok()) << config.status().to_string();
  options.kind = "cpu";
  const auto cpu = make_backend(options);
  ASSERT_TRUE(cpu.is_ok());
  MakerOptions maker;
  maker.directory = directory.path() + "/journal";
  maker.requests = 200;
  maker.versions = kVersions;
  maker.seed = 2;
  const Status made = make_test_journal(maker, *config, **cpu);
  ASSERT_TRUE(made.is_ok()) << made.to_string();
  expect_equal(maker.directory, "cuda", UINT64_MAX,
               {replay::Mode::alone, replay::Mode::batches, replay::Mode::rerun});
  expect_equal(EXACT_GOLDEN_DIR "/journal", "cuda", UINT64_MAX,
               {replay::Mode::alone, replay::Mode::batches, replay::Mode::rerun});
}

}  // namespace
}  // namespace exact
