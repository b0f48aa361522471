// Every feature at once, on engines with hardly any pages: each request must have the bits that it
// has alone. Alone means one at a time, on an engine with room, no reuse of prefixes and no swap
// space. That such an engine is warm from the request before is no way for bits to get in: it keeps
// no text, a page that goes out again is written before it is read (batch_traps_test.cc), and every
// fresh engine starts with zeros that nothing reads either.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/engine/random_load.h"
#include "tests/engine/rich_requests.h"
#include "tests/support/expect_bits.h"

namespace exact {
namespace {

struct Totals {
  int64_t requests = 0, tokens = 0, refused = 0, cancelled = 0, versions = 0, masks = 0;
  int64_t groups = 0, preempted = 0, swapped_out = 0, swapped_in = 0, reused_rows = 0;
  int64_t streamed = 0, stopped = 0;
  uint64_t evicted = 0, copied = 0;
};

BackendOptions one_thread() {
  return {"cpu", {best_cpu_isa(), 1}, {}};
}

class Episode {
 public:
  Episode(uint64_t seed, bool has_updates, Totals& totals)
      : random_(seed),
        has_updates_(has_updates),
        totals_(totals),
        config_(rich_config()),
        limits_(starved_limits(random_)),
        load_(config_, one_thread(), limits_, weight_seed(1)) {}

  void run() {
    const int64_t count = 60;
    for (int64_t next = 1; next <= count || load_->has_work();) {
      while (next <= count && load_->status().waiting < 12 && random_.between(0, 2) > 0) {
        submit(RequestId{static_cast<uint64_t>(next++)});
      }
      if (random_.between(0, 39) == 0) cancel_one(next);
      if (has_updates_ && random_.between(0, 19) == 0) update();
      answer_some(next > count);
      if (!load_.step_into(results_)) return;
      take_masks();
    }
    totals_.preempted += results_.preempted;
    totals_.swapped_out += results_.swapped_out;
    totals_.swapped_in += results_.swapped_in;
    totals_.reused_rows += results_.reused_rows;
    totals_.evicted += load_->status().pages_evicted;
    totals_.copied += load_->status().pages_copied;
    EXPECT_EQ(load_->status().pages_free, load_->status().pages_total) << describe_all();
    EXPECT_TRUE(load_->check_integrity().is_ok()) << describe_all();
    EXPECT_EQ(results_.samples.size(), expected_samples_) << describe_all();
    check_streams();
    for (const SampleResult& sample : results_.samples) check_sample(sample);
    for (const ScoreResult& score : results_.scores) check_score(score);
  }

 private:
  std::string describe_all() const {
    return random_.describe() + ": " + describe(limits_) + ", swap " +
           std::to_string(limits_.swap_bytes) + (limits_.prefix_reuse ? ", reuse" : "");
  }
  static uint64_t weight_seed(uint64_t version) { return 500 + version; }

  void submit(RequestId id) {
    if (random_.between(0, 7) == 0) {
      scores_[id] = rich_score(random_, config_, limits_, id);
      ASSERT_TRUE(load_->submit(scores_[id]).is_ok());
      totals_.requests++;
      return;
    }
    const GenerateRequest request = rich_generate(random_, config_, limits_, id);
    const Status status = load_->submit(request);
    if (status.code() == Code::invalid) {  // no token is left to draw
      totals_.refused++;
      return;
    }
    ASSERT_TRUE(status.is_ok()) << status.to_string();
    generates_[id] = request;
    expected_samples_ += static_cast<size_t>(request.n);
    totals_.requests++;
    totals_.groups += request.n > 1;
  }

  void cancel_one(int64_t next) {
    const RequestId id{static_cast<uint64_t>(random_.between(1, next))};
    if (!load_->cancel(id).is_ok()) return;
    totals_.cancelled++;
    std::erase_if(wanted_, [&](const MaskWanted& mask) { return mask.request == id; });
  }

  void update() {
    if (load_->update_pending() || version_ == 4) return;
    version_++;
    totals_.versions++;
    constexpr UpdatePolicy kPolicies[] = {UpdatePolicy::recompute, UpdatePolicy::recompute,
                                          UpdatePolicy::wait, UpdatePolicy::abort};
    load_.update(WeightVersion{version_}, weight_seed(version_),
                 random_.pick(std::span(kPolicies)));
  }

  void take_masks() {
    std::move(results_.masks_wanted.begin(), results_.masks_wanted.end(),
              std::back_inserter(wanted_));
    results_.masks_wanted.clear();
    // Those that an update aborted ask no more.
    for (; seen_samples_ < results_.samples.size(); seen_samples_++) {
      const SampleResult& done = results_.samples[seen_samples_];
      std::erase_if(wanted_, [&](const MaskWanted& mask) {
        return mask.request == done.request && mask.sample_index == done.sample_index;
      });
    }
  }

  void answer_some(bool all) {
    while (!wanted_.empty() && (all || random_.between(0, 1) == 0)) {
      std::swap(wanted_[static_cast<size_t>(random_.between(0, std::ssize(wanted_) - 1))],
                wanted_.back());
      answer_mask(*load_, wanted_.back());
      wanted_.pop_back();
      totals_.masks++;
    }
  }

  // Kept over episodes: an engine a version.
  LoadedEngine& alone(WeightVersion version) {
    static std::map<uint64_t, std::unique_ptr<LoadedEngine>> engines;
    auto& engine = engines[version.value];
    if (engine == nullptr) {
      EngineLimits roomy;
      roomy.max_context = 128;
      roomy.max_step_tokens = 512;
      roomy.prefix_reuse = false;
      engine =
          std::make_unique<LoadedEngine>(config_, one_thread(), roomy, weight_seed(version.value));
    }
    return *engine;
  }

  std::vector<SampleResult> run_alone(WeightVersion version, GenerateRequest request) {
    LoadedEngine& engine = alone(version);
    const Status submitted = engine->submit(std::move(request));
    EXPECT_TRUE(submitted.is_ok()) << submitted.to_string();
    StepReport all;
    while (engine->has_work()) {
      for (const MaskWanted& mask : all.masks_wanted) answer_mask(*engine, mask);
      all.masks_wanted.clear();
      if (!engine.step_into(all)) break;
    }
    EXPECT_EQ(all.preempted + all.swapped_out + all.reused_rows, 0);
    std::ranges::sort(all.samples, {}, &SampleResult::sample_index);
    return std::move(all.samples);
  }

  // Tokens [begin, end) as one version makes them after those before, which it is forced to.
  const SampleResult& reference(const GenerateRequest& request, const SampleResult& sample,
                                WeightVersion version, size_t begin) {
    const bool forces = begin > request.forced_ids.size();
    auto& kept = references_[{request.id, version, forces ? sample.sample_index : -1, begin}];
    if (kept.empty()) {
      GenerateRequest again = request;
      if (forces) {
        again.forced_ids.assign(sample.tokens.begin(),
                                sample.tokens.begin() + static_cast<std::ptrdiff_t>(begin));
      }
      again.priority = 0;
      kept = run_alone(version, std::move(again));
    }
    return kept.at(static_cast<size_t>(sample.sample_index));
  }

  void check_sample(const SampleResult& sample) {
    const GenerateRequest& request = generates_.at(sample.request);
    const std::string what = describe_rich(request) + ", sample " +
                             std::to_string(sample.sample_index) + ", ended by " +
                             std::string(finish_reason_name(sample.reason)) + "; " + describe_all();
    totals_.tokens += std::ssize(sample.tokens);
    totals_.stopped += sample.reason == FinishReason::stop;
    ASSERT_NE(sample.reason, FinishReason::error) << sample.error.to_string() << what;
    for (size_t i = 0; i < sample.versions.size(); i++) {
      const bool is_last = i + 1 == sample.versions.size();
      const auto begin = static_cast<size_t>(sample.versions[i].begin);
      const size_t end =
          is_last ? sample.tokens.size() : static_cast<size_t>(sample.versions[i + 1].begin);
      const WeightVersion version = sample.versions[i].version;
      const SampleResult& want = reference(request, sample, version, begin);
      ASSERT_GE(want.tokens.size(), end) << what;
      compare(request, sample, want, begin, end, what);
      if (i == 0) {
        EXPECT_BITS_EQ(sample.prompt_logprobs, want.prompt_logprobs, "prompt, " + what);
      }
      const bool ended =
          sample.reason == FinishReason::stop || sample.reason == FinishReason::length;
      if (is_last && ended) {
        EXPECT_EQ(sample.reason, want.reason) << what;
        EXPECT_EQ(sample.tokens.size(), want.tokens.size()) << what;
      }
    }
  }

  void compare(const GenerateRequest& request, const SampleResult& got, const SampleResult& want,
               size_t begin, size_t end, const std::string& what) {
    const auto expect = [&](const auto& a, const auto& b, size_t each, const char* name) {
      const size_t first = begin * each, count = (end - begin) * each;
      ASSERT_EQ(a.size(), got.tokens.size() * each) << name << " of " << what;
      EXPECT_BITS_EQ(std::span(a).subspan(first, count), std::span(b).subspan(first, count),
                     std::string(name) + " of " + what);
    };
    const ReportParams& report = request.report;
    const auto top = static_cast<size_t>(report.top_logprobs);
    expect(got.tokens, want.tokens, 1, "ids");
    expect(got.logprobs, want.logprobs, 1, "raw");
    expect(got.processed_logprobs, want.processed_logprobs, 1, "processed");
    expect(got.entropies, want.entropies, report.entropy, "entropies");
    expect(got.top_ids, want.top_ids, top, "top ids");
    expect(got.top_logprobs, want.top_logprobs, top, "top log-probabilities");
    expect(got.kept_counts, want.kept_counts, report.kept_set, "kept counts");
    if (!report.kept_set) return;
    EXPECT_BITS_EQ(kept_part(got, begin, end), kept_part(want, begin, end), "kept ids, " + what);
  }

  static std::span<const int32_t> kept_part(const SampleResult& sample, size_t begin, size_t end) {
    size_t first = 0, count = 0;
    for (size_t i = 0; i < end; i++) {
      (i < begin ? first : count) += static_cast<size_t>(sample.kept_counts[i]);
    }
    return std::span(sample.kept_ids).subspan(first, count);
  }

  void check_score(const ScoreResult& score) {
    if (!score.error.is_ok()) return;
    LoadedEngine& engine = alone(score.version);
    ASSERT_TRUE(engine->submit(scores_.at(score.request)).is_ok());
    EXPECT_BITS_EQ(score.logprobs, engine.run_all().scores.at(0).logprobs, describe_all());
  }

  // What was streamed is what came back in the end, in the order of sampling.
  void check_streams() {
    std::map<std::pair<RequestId, int32_t>, SampleProgress> streams;
    for (const SampleProgress& part : results_.progress) {
      SampleProgress& whole = streams[{part.request, part.sample_index}];
      ASSERT_EQ(static_cast<size_t>(part.begin), whole.tokens.size()) << describe_all();
      whole.tokens.insert(whole.tokens.end(), part.tokens.begin(), part.tokens.end());
      whole.logprobs.insert(whole.logprobs.end(), part.logprobs.begin(), part.logprobs.end());
      totals_.streamed += std::ssize(part.tokens);
    }
    for (const SampleResult& sample : results_.samples) {
      if (!generates_.at(sample.request).stream) continue;
      const SampleProgress& whole = streams[{sample.request, sample.sample_index}];
      EXPECT_BITS_EQ(whole.tokens, sample.tokens, describe_all());
      EXPECT_BITS_EQ(whole.logprobs, sample.logprobs, describe_all());
    }
  }

  struct ReferenceKey {
    RequestId request;
    WeightVersion version;
    int32_t sample_index = -1;  // -1: of all
    size_t begin = 0;
    friend auto operator<=>(const ReferenceKey&, const ReferenceKey&) = default;
  };

  RandomData random_;
  bool has_updates_;
  Totals& totals_;
  ModelConfig config_;
  EngineLimits limits_;
  LoadedEngine load_;
  uint64_t version_ = 1;
  std::map<RequestId, GenerateRequest> generates_;
  std::map<RequestId, ScoreRequest> scores_;
  std::vector<MaskWanted> wanted_;
  StepReport results_;
  size_t expected_samples_ = 0, seen_samples_ = 0;
  std::map<ReferenceKey, std::vector<SampleResult>> references_;
};

// Episode i has seed EXACT_TEST_SEED + i, and a failure names its own: run again with that seed, it
// comes first.
TEST(EveryFeature, TenThousandRequestsHaveTheBitsTheyHaveAlone) {
  Totals totals;
  for (uint64_t i = 0; totals.requests < 10'000 && !HasFailure(); i++) {
    Episode(test_seed() + i, i % 3 == 2, totals).run();
  }
  std::cout << "requests " << totals.requests << ", groups " << totals.groups << ", tokens "
            << totals.tokens << ", streamed " << totals.streamed << ", stopped " << totals.stopped
            << ", masks " << totals.masks << ", refused " << totals.refused << ", cancelled "
            << totals.cancelled << ", versions " << totals.versions << ", preempted "
            << totals.preempted << ", swapped out " << totals.swapped_out << ", in "
            << totals.swapped_in << ", reused rows " << totals.reused_rows << ", evicted "
            << totals.evicted << ", copied " << totals.copied << "\n";
  if (HasFailure()) return;
  // Each mechanism took part.
  for (const int64_t count :
       {totals.groups, totals.streamed, totals.stopped, totals.masks, totals.preempted,
        totals.swapped_out, totals.swapped_in, totals.reused_rows}) {
    EXPECT_GE(count, 500);
  }
  EXPECT_GE(totals.evicted, 500u);
  EXPECT_GE(totals.copied, 500u);
  EXPECT_GE(totals.cancelled, 50);
  EXPECT_GE(totals.versions, 50);
}

}  // namespace
}  // namespace exact
