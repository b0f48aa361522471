// Batches that broke invariance elsewhere, each as a case of its own: a neighbour that grows by one
// token, dozens of sequences at once, one seed for a whole group. The random mixes are
// batch_invariance_test.cc's.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/digest.h"
#include "tests/engine/random_load.h"
#include "tests/support/backends.h"
#include "tests/support/expect_bits.h"

namespace exact {
namespace {

using SampleKey = std::pair<uint64_t, int32_t>;  // request, sample index

class BatchTraps : public testing::TestWithParam<const char*> {
 protected:
  BatchTraps() : random_(), config_(random_config(random_)) { backend_.kind = GetParam(); }

  void SetUp() override {
    const std::string missing = missing_backend(backend_);
    if (!missing.empty()) GTEST_SKIP() << missing;
  }

  EngineLimits limits() const {
    EngineLimits limits;
    limits.max_context = 96;
    return limits;
  }

  GenerateRequest request(uint64_t id, int32_t prompt_size, int32_t max_new_tokens, int32_t n = 1) {
    GenerateRequest request;
    request.id = RequestId{id};
    for (int32_t i = 0; i < prompt_size; i++) {
      request.prompt.push_back(
          static_cast<int32_t>((id * 31 + static_cast<uint64_t>(i) * 17) % 64));
    }
    request.n = n;
    request.max_new_tokens = max_new_tokens;
    request.sampling.seed = 1000 + id;
    return request;
  }

  std::map<SampleKey, SampleResult> run(const EngineLimits& limits,
                                        const std::vector<GenerateRequest>& requests) {
    LoadedEngine engine(config_, backend_, limits, random_.seed());
    for (const GenerateRequest& request : requests) {
      EXPECT_TRUE(engine->submit(request).is_ok());
    }
    std::map<SampleKey, SampleResult> results;
    for (SampleResult& sample : engine.run_all().samples) {
      results[{sample.request.value, sample.sample_index}] = std::move(sample);
    }
    return results;
  }

  void expect_same(const SampleResult& got, const SampleResult& want, const std::string& what) {
    const std::string trace = what + "; " + random_.describe() + ": " + describe(config_);
    EXPECT_BITS_EQ(got.tokens, want.tokens, "ids, " + trace);
    EXPECT_BITS_EQ(got.logprobs, want.logprobs, "raw, " + trace);
    EXPECT_BITS_EQ(got.processed_logprobs, want.processed_logprobs, "processed, " + trace);
  }

  RandomData random_;
  ModelConfig config_;
  BackendOptions backend_;
};

TEST_P(BatchTraps, ANeighboursPromptCanHaveAnyLength) {
  const auto want = run(limits(), {request(1, 5, 12)}).at({1, 0});
  for (int32_t length = 1; length <= 24; length++) {
    const auto got = run(limits(), {request(1, 5, 12), request(2, length, 3)}).at({1, 0});
    expect_same(got, want, "a neighbour of " + std::to_string(length));
  }
}

TEST_P(BatchTraps, AnyNumberOfSequencesRunTogether) {
  std::vector<GenerateRequest> requests;
  std::map<SampleKey, SampleResult> want;
  for (uint64_t id = 1; id <= 50; id++) {
    requests.push_back(request(id, static_cast<int32_t>(1 + id % 13), 6));
    want.merge(run(limits(), {requests.back()}));
  }
  EngineLimits together = limits();
  together.page_count = 64 * 2;
  for (const size_t count : {2u, 7u, 8u, 9u, 16u, 17u, 31u, 43u, 44u, 45u, 46u, 50u}) {
    const auto got = run(together, {requests.begin(), requests.begin() + static_cast<long>(count)});
    ASSERT_EQ(got.size(), count);
    for (const auto& [key, sample] : got) {
      expect_same(sample, want.at(key),
                  "request " + std::to_string(key.first) + " of " + std::to_string(count));
    }
  }
}

TEST_P(BatchTraps, SampleIOfNIsTheSameForAnyN) {
  const auto want = run(limits(), {request(1, 9, 10, 9)});
  for (int32_t n = 1; n < 9; n++) {
    const auto got = run(limits(), {request(1, 9, 10, n)});
    ASSERT_EQ(got.size(), static_cast<size_t>(n));
    for (const auto& [key, sample] : got) {
      expect_same(sample, want.at(key),
                  "sample " + std::to_string(key.second) + " of " + std::to_string(n));
    }
  }
}

TEST_P(BatchTraps, SamplesOfAGroupAndSeedsDiffer) {
  GenerateRequest other_seed = request(1, 9, 20);
  other_seed.id = RequestId{2};
  other_seed.sampling.seed++;
  std::set<std::vector<int32_t>> texts;
  for (const auto& [key, sample] : run(limits(), {request(1, 9, 20, 8), other_seed})) {
    texts.insert(sample.tokens);
  }
  EXPECT_EQ(texts.size(), 9u);
}

TEST_P(BatchTraps, TheOrderOfArrivalChangesNothing) {
  std::vector<GenerateRequest> requests;
  for (uint64_t id = 1; id <= 8; id++) {
    requests.push_back(request(id, static_cast<int32_t>(id * 5 % 17 + 1), 8, 2));
  }
  EngineLimits few_rows = limits();
  few_rows.max_step_tokens = 13;
  const auto want = run(few_rows, requests);
  std::reverse(requests.begin(), requests.end());
  const auto got = run(few_rows, requests);
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [key, sample] : got) {
    expect_same(sample, want.at(key), "request " + std::to_string(key.first));
  }
}

TEST_P(BatchTraps, AnyCutOfAPromptGivesTheSameBits) {
  const auto want = run(limits(), {request(1, 70, 4)}).at({1, 0});
  for (const int32_t rows : {1, 2, 3, 7, 15, 16, 17, 31, 63, 64, 65, 69}) {
    EngineLimits cut = limits();
    cut.max_step_tokens = rows;
    expect_same(run(cut, {request(1, 70, 4)}).at({1, 0}), want,
                "chunks of " + std::to_string(rows));
  }
}

// A fused sampler diverged elsewhere from 44 co-resident sequences on, in log-probabilities alone.
TEST_P(BatchTraps, FiveRepeatsOfOneLoadHaveOneHash) {
  for (const uint64_t count : {44u, 45u, 64u, 200u}) {
    if (count > 64 && backend_.kind == "cpu") continue;  // the GPU's case; slow here
    std::vector<GenerateRequest> requests;
    for (uint64_t id = 1; id <= count; id++) {
      requests.push_back(request(id, static_cast<int32_t>(1 + id % 29), 20));
    }
    EngineLimits together = limits();
    together.max_running = 200;
    together.page_count = 400;
    std::set<std::string> hashes;
    for (int repeat = 0; repeat < 5; repeat++) {
      DigestStream stream;
      for (const auto& [key, sample] : run(together, requests)) {
        stream.update(std::as_bytes(std::span(sample.tokens)));
        stream.update(std::as_bytes(std::span(sample.logprobs)));
        stream.update(std::as_bytes(std::span(sample.processed_logprobs)));
      }
      hashes.insert(stream.finish().to_hex());
    }
    EXPECT_EQ(hashes.size(), 1u) << count << " sequences";
  }
}

// Steps of a GPU are padded to few sizes, recorded and repeated: rows that belong to nobody, and
// the step that is recorded against the one that is not, can't be seen.
TEST_P(BatchTraps, PaddingRowsAndRecordsOfAStepCantBeSeen) {
  for (const uint64_t count : {1u, 2u, 3u, 5u, 7u, 9u, 15u, 17u, 33u}) {
    std::vector<GenerateRequest> requests;
    for (uint64_t id = 1; id <= count; id++) {
      requests.push_back(request(id, static_cast<int32_t>(1 + id % 7), 12));
    }
    EngineLimits together = limits();
    together.page_count = 200;
    backend_.cuda.graphs = true;
    const auto recorded = run(together, requests);
    backend_.cuda.graphs = false;
    const auto plain = run(together, requests);
    for (const auto& [key, sample] : recorded) {
      expect_same(sample, plain.at(key), std::to_string(count) + " sequences");
      const GenerateRequest& own = requests[key.first - 1];
      expect_same(sample, run(limits(), {own}).at(key), "beside " + std::to_string(count));
    }
  }
}

// Log-probabilities of a prompt were read from memory that a neighbour had left, elsewhere.
TEST_P(BatchTraps, WhatOthersLeftInThePagesCantBeSeen) {
  EngineLimits few = limits();
  few.page_count = 6;
  few.page_size = 16;
  const ScoreRequest score{RequestId{99}, request(5, 60, 1).prompt};
  const auto score_on = [&](LoadedEngine& engine) {
    EXPECT_TRUE(engine->submit(score).is_ok());
    return engine.run_all().scores.at(0).logprobs;
  };
  LoadedEngine fresh(config_, backend_, few, random_.seed());
  const auto want = score_on(fresh);
  LoadedEngine used(config_, backend_, few, random_.seed());
  for (uint64_t id = 1; id <= 12; id++) {
    EXPECT_TRUE(used->submit(request(id, static_cast<int32_t>(id * 7), 9)).is_ok());
  }
  EXPECT_EQ(used.run_all().samples.size(), 12u);
  EXPECT_BITS_EQ(score_on(used), want, random_.describe());
  EXPECT_BITS_EQ(score_on(used), want, "the second time, " + random_.describe());
}

INSTANTIATE_TEST_SUITE_P(Backend, BatchTraps, testing::Values("cpu", "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace exact
