// The promise of the project: the bits of a request depend on the request and the weights alone.
// Random mixes run on starved engines; each result must be that of the same request run alone with
// room to spare, on another thread count and instruction set, and the scorer's.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/sampling.h"
#include "tests/engine/random_load.h"
#include "tests/support/expect_bits.h"

namespace exact {
namespace {

struct Totals {
  int64_t requests = 0, tokens = 0, preempted = 0, cancelled = 0, versions = 0;
};

// Whether the load's engine gets new weights while it runs.
enum class Updates { none, random };

// One model, one starved engine, a random load. Version v of the weights has seed base + v.
class Episode {
 public:
  Episode(uint64_t seed, Updates updates, Totals& totals)
      : random_(seed),
        updates_(updates),
        totals_(totals),
        config_(random_config(random_)),
        limits_(tight_limits(random_)),
        load_(config_, random_backend(random_), limits_, weight_seed(1)) {}

  std::string describe_all() const {
    return random_.describe() + ": " + describe(config_) + "; " + describe(limits_);
  }

  void run() {
    const int64_t request_count = random_.between(4, 14);
    for (uint64_t next = 1; static_cast<int64_t>(next) <= request_count || load_->has_work();) {
      while (static_cast<int64_t>(next) <= request_count && random_.between(0, 2) > 0) {
        submit(RequestId{next++});
      }
      if (random_.between(0, 29) == 0) cancel_one();
      if (updates_ == Updates::random && random_.between(0, 9) == 0) update();
      if (!load_.step_into(results_)) return;
    }
    totals_.preempted += results_.preempted;
    EXPECT_EQ(load_->status().pages_free, load_->status().pages_total) << "pages leaked";
    check_complete();
    for (const SampleResult& sample : results_.samples) check_sample(sample);
    for (const ScoreResult& score : results_.scores) check_score(score);
  }

 private:
  uint64_t weight_seed(uint64_t version) const { return random_.seed() * 100 + version; }

  void submit(RequestId id) {
    totals_.requests++;
    if (random_.between(0, 3) == 0) {
      const ScoreRequest request = random_score(random_, config_, limits_, id);
      scores_[id] = request;
      ASSERT_TRUE(load_->submit(request).is_ok());
    } else {
      const GenerateRequest request = random_generate(random_, config_, limits_, id);
      generates_[id] = request;
      ASSERT_TRUE(load_->submit(request).is_ok());
    }
  }

  void cancel_one() {
    const auto count = static_cast<int64_t>(generates_.size() + scores_.size());
    if (count == 0) return;
    const Status status =
        load_->cancel(RequestId{static_cast<uint64_t>(random_.between(1, count))});
    totals_.cancelled += status.is_ok();
    EXPECT_TRUE(status.is_ok() || status.code() == Code::not_found) << status.to_string();
  }

  void update() {
    if (load_->update_pending() || version_ == 6) return;
    version_++;
    totals_.versions++;
    constexpr UpdatePolicy kPolicies[] = {UpdatePolicy::recompute, UpdatePolicy::recompute,
                                          UpdatePolicy::recompute, UpdatePolicy::wait,
                                          UpdatePolicy::abort};
    load_.update(WeightVersion{version_}, weight_seed(version_),
                 random_.pick(std::span(kPolicies)));
  }

  // Every sample of every request came back, once.
  void check_complete() {
    std::map<RequestId, std::set<int32_t>> seen;
    for (const SampleResult& sample : results_.samples) {
      EXPECT_TRUE(seen[sample.request].insert(sample.sample_index).second) << "answered twice";
    }
    EXPECT_EQ(seen.size(), generates_.size());
    for (const auto& [id, request] : generates_) {
      EXPECT_EQ(seen[id].size(), static_cast<size_t>(request.n));
    }
    EXPECT_EQ(results_.scores.size(), scores_.size());
  }

  // Alone, with room to spare, on another machine as it were. Kept: an engine a version.
  LoadedEngine& alone(WeightVersion version) {
    auto& engine = alone_[version];
    if (engine == nullptr) {
      engine = std::make_unique<LoadedEngine>(config_, random_backend(random_),
                                              roomy_limits(limits_), weight_seed(version.value));
    }
    return *engine;
  }

  std::vector<SampleResult> generate_alone(WeightVersion version, const GenerateRequest& request) {
    LoadedEngine& engine = alone(version);
    const Status submitted = engine->submit(request);
    EXPECT_TRUE(submitted.is_ok()) << submitted.to_string();
    auto samples = engine.run_all().samples;
    std::sort(samples.begin(), samples.end(),
              [](const auto& a, const auto& b) { return a.sample_index < b.sample_index; });
    return samples;
  }

  std::vector<float> score_alone(WeightVersion version, std::vector<int32_t> tokens) {
    LoadedEngine& engine = alone(version);
    const Status submitted = engine->submit(ScoreRequest{RequestId{1}, std::move(tokens)});
    EXPECT_TRUE(submitted.is_ok()) << submitted.to_string();
    return std::move(engine.run_all().scores.at(0).logprobs);
  }

  void check_sample(const SampleResult& sample) {
    const GenerateRequest& request = generates_.at(sample.request);
    const std::string what = describe(request) + ", sample " + std::to_string(sample.sample_index) +
                             ", ended by " + std::string(finish_reason_name(sample.reason)) + "; " +
                             describe_all();
    totals_.tokens += static_cast<int64_t>(sample.tokens.size());
    ASSERT_EQ(sample.logprobs.size(), sample.tokens.size()) << what;
    ASSERT_EQ(sample.processed_logprobs.size(), sample.tokens.size()) << what;
    check_end(request, sample, what);
    ASSERT_EQ(sample.versions.empty(), sample.tokens.empty()) << what;
    for (size_t i = 0; i < sample.versions.size(); i++) {
      const bool is_last = i + 1 == sample.versions.size();
      const auto begin = static_cast<size_t>(sample.versions[i].begin);
      const size_t end =
          is_last ? sample.tokens.size() : static_cast<size_t>(sample.versions[i + 1].begin);
      check_span(request, sample, sample.versions[i].version, begin, end,
                 what + ", version " + std::to_string(sample.versions[i].version.value));
    }
  }

  // The reason to stop is the true one, and nothing stopped late.
  void check_end(const GenerateRequest& request, const SampleResult& sample,
                 const std::string& what) {
    const auto is_stop = [&](int32_t id) { return std::ranges::count(request.stop_ids, id) > 0; };
    const auto first = std::ranges::find_if(sample.tokens, is_stop);
    const auto most = static_cast<size_t>(effective_max_new_tokens(request, limits_));
    ASSERT_LE(sample.tokens.size(), most) << what;
    if (sample.reason == FinishReason::stop) {
      EXPECT_EQ(first + 1, sample.tokens.end()) << what;
    } else {
      EXPECT_EQ(first, sample.tokens.end()) << what;
    }
    EXPECT_TRUE(sample.reason != FinishReason::length || sample.tokens.size() == most) << what;
    const bool one_choice = request.sampling.temperature == 0.0f || request.sampling.top_k == 1;
    if (one_choice) {
      EXPECT_EQ(std::ranges::count(sample.processed_logprobs, 0.0f), std::ssize(sample.tokens))
          << "a certain draw; " << what;
    }
    EXPECT_NE(sample.reason, FinishReason::error) << sample.error.to_string() << what;
    EXPECT_TRUE(sample.reason != FinishReason::aborted || updates_ == Updates::random) << what;
  }

  // Tokens [begin, end): asked again of one version alone, from the text before them, they are the
  // same tokens with the same bits; and the scorer gives the raw log-probabilities.
  void check_span(const GenerateRequest& request, const SampleResult& sample, WeightVersion version,
                  size_t begin, size_t end, const std::string& what) {
    GenerateRequest again = request;
    again.prompt.insert(again.prompt.end(), sample.tokens.begin(),
                        sample.tokens.begin() + static_cast<std::ptrdiff_t>(begin));
    again.max_new_tokens = static_cast<int32_t>(end - begin);
    const auto samples = generate_alone(version, again);
    ASSERT_EQ(samples.size(), static_cast<size_t>(request.n)) << what;
    const SampleResult& same = samples[static_cast<size_t>(sample.sample_index)];
    const auto part = [&](const auto& values) {
      return std::span(values).subspan(begin, end - begin);
    };
    EXPECT_BITS_EQ(part(sample.tokens), same.tokens, "ids of " + what);
    EXPECT_BITS_EQ(part(sample.logprobs), same.logprobs, "raw, generated alone; " + what);
    EXPECT_BITS_EQ(part(sample.processed_logprobs), same.processed_logprobs, "processed; " + what);

    std::vector<int32_t> text = request.prompt;
    text.insert(text.end(), sample.tokens.begin(), sample.tokens.end());
    const std::vector<float> score = score_alone(version, text);
    const size_t first = request.prompt.size() - 1 + begin;
    EXPECT_BITS_EQ(part(sample.logprobs), std::span(score).subspan(first, end - begin),
                   "raw, scored; " + what);
  }

  void check_score(const ScoreResult& score) {
    const std::string what = "score " + std::to_string(score.request.value) + "; " + describe_all();
    if (!score.error.is_ok()) {
      EXPECT_TRUE(score.error.code() == Code::cancelled) << score.error.to_string() << what;
      return;
    }
    EXPECT_BITS_EQ(score.logprobs, score_alone(score.version, scores_.at(score.request).tokens),
                   what);
  }

  RandomData random_;
  Updates updates_;
  Totals& totals_;
  ModelConfig config_;
  EngineLimits limits_;
  LoadedEngine load_;
  uint64_t version_ = 1;
  std::map<RequestId, GenerateRequest> generates_;
  std::map<RequestId, ScoreRequest> scores_;
  StepReport results_;
  std::map<WeightVersion, std::unique_ptr<LoadedEngine>> alone_;
};

// Episode i has seed EXACT_TEST_SEED + i, and a failure names its own: run again with that seed, it
// comes first.
Totals run_episodes(int episodes, Updates updates) {
  Totals totals;
  for (int i = 0; i < episodes && !testing::Test::HasFailure(); i++) {
    Episode(test_seed() + static_cast<uint64_t>(i), updates, totals).run();
  }
  testing::Test::RecordProperty("requests", std::to_string(totals.requests));
  testing::Test::RecordProperty("tokens", std::to_string(totals.tokens));
  testing::Test::RecordProperty("preempted", std::to_string(totals.preempted));
  return totals;
}

TEST(BatchInvariance, ARequestHasTheBitsItHasAlone) {
  const Totals totals = run_episodes(40, Updates::none);
  // The load did what it is here for.
  EXPECT_GE(totals.requests, 200);
  EXPECT_GE(totals.preempted, 50);
  EXPECT_GE(totals.cancelled, 5);
}

TEST(BatchInvariance, EachTokenHasTheBitsOfItsVersionThoughWeightsChangeUnderIt) {
  const Totals totals = run_episodes(16, Updates::random);
  EXPECT_GE(totals.requests, 80);
  EXPECT_GE(totals.versions, 16);
}

}  // namespace
}  // namespace exact
