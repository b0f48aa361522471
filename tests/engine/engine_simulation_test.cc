// The engine's bookkeeping over a million random operations: requests of every kind come, are
// cancelled, preempted, swapped and finish, weights change under them. The model is a hash of the
// text (chain_backend.h), so each result is known beforehand, and a page that holds anything but
// its own text would show.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "tests/engine/chain_backend.h"
#include "tests/support/expect_bits.h"
#include "tests/support/model_fixture.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

ModelConfig tiny_config() {
  auto config = parse_config(R"({"model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32,
    "vocab_size": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "bfloat16",
    "tie_word_embeddings": true})");
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  return config.value();
}

struct Totals {
  int64_t operations = 0, steps = 0, finished = 0, cancelled = 0, versions = 0, masks = 0;
  int64_t preempted = 0, swapped_out = 0, swapped_in = 0, reused_rows = 0;
  uint64_t evicted = 0, copied = 0;
};

class Simulation {
 public:
  Simulation(RandomData& random, Totals& totals)
      : random_(random), totals_(totals), config_(tiny_config()) {
    limits_.max_context = between(8, 150);
    limits_.page_size = 16;
    const int32_t pages_of_one = (limits_.max_context + 15) / 16;
    limits_.page_count = pages_of_one + between(0, 2 * pages_of_one);
    limits_.max_step_tokens = one_in(4) ? between(1, 4) : between(1, 200);
    limits_.max_running = between(1, 12);
    limits_.prefix_reuse = !one_in(4);
    limits_.swap_bytes = one_in(3) ? 0 : between(1, 20) * 16 * 8;
    limits_.row_cost_bytes = one_in(2) ? 1000 : 17;
    auto engine = Engine::create(config_, backend_, hash_slot(config_, backend_, 1), limits_);
    EXPECT_TRUE(engine.is_ok()) << engine.status().to_string();
    engine_ = std::move(engine).value();
  }

  std::string describe() const {
    return "context " + std::to_string(limits_.max_context) + ", pages " +
           std::to_string(limits_.page_count) + ", rows " +
           std::to_string(limits_.max_step_tokens) + ", running " +
           std::to_string(limits_.max_running) + ", swap " + std::to_string(limits_.swap_bytes) +
           ", row cost " + std::to_string(limits_.row_cost_bytes) +
           (limits_.prefix_reuse ? ", reuse" : "");
  }

  void operate() {
    const int64_t choice = random_.between(0, 999);
    if (choice < 80) {
      submit();
    } else if (choice < 95) {
      cancel();
    } else if (choice < 100) {
      update();
    } else if (choice < 300) {
      answer_masks(1);
    } else {
      step();
    }
    check();
  }

  // Nothing new comes; clients answer at last. Each step computes a row at least.
  void drain() {
    for (int steps = 0; engine_->has_work(); steps++) {
      ASSERT_LT(steps, 200'000) << "it does not come to an end";
      answer_masks(wanted_.size());
      step();
      check();
      if (testing::Test::HasFatalFailure()) return;
    }
    ASSERT_TRUE(generates_.empty() && scores_.empty()) << "requests without an answer";
    ASSERT_EQ(engine_->status().pages_free, limits_.page_count) << "pages leaked";
    totals_.evicted += engine_->status().pages_evicted;
    totals_.copied += engine_->status().pages_copied;
  }

 private:
  struct Request {
    GenerateRequest request;
    std::set<int32_t> open;                            // samples
    std::map<int32_t, std::vector<int32_t>> streamed;  // by sample
  };

  int32_t between(int64_t low, int64_t high) {
    return static_cast<int32_t>(random_.between(low, high));
  }
  bool one_in(int64_t count) { return random_.between(1, count) == 1; }
  bool is_full() const { return generates_.size() + scores_.size() > 24; }

  // Texts that begin alike, so that there is something to find.
  std::vector<int32_t> random_text(int32_t size) {
    std::vector<int32_t> ids(static_cast<size_t>(size));
    const int32_t kind = between(0, 2);
    for (int32_t i = 0; i < size; i++) ids[static_cast<size_t>(i)] = (i * 7 + kind) % 32;
    if (one_in(2)) ids[static_cast<size_t>(between(0, size - 1))] = between(0, 31);
    return ids;
  }

  void submit() {
    if (is_full()) return;
    totals_.operations++;
    const RequestId id{next_id_++};
    if (one_in(5)) {
      ScoreRequest score{id, random_text(between(2, limits_.max_context)), between(-1, 1),
                         static_cast<uint32_t>(between(0, 2))};
      scores_[id] = score.tokens;
      ASSERT_TRUE(engine_->submit(std::move(score)).is_ok());
      return;
    }
    GenerateRequest request;
    request.id = id;
    const int32_t size =
        between(1, one_in(3) ? limits_.max_context - 1 : limits_.max_context / 6 + 1);
    request.prompt = random_text(size);
    request.n = one_in(3) ? between(2, 5) : 1;
    request.max_new_tokens = between(1, limits_.max_context - size);
    if (one_in(2)) request.max_new_tokens = std::min(request.max_new_tokens, between(1, 20));
    request.sampling.seed = static_cast<uint64_t>(between(0, 3));
    if (one_in(4)) request.stop_ids = {between(0, 31)};
    if (one_in(4)) request.stop_sequences = {{between(0, 31)}, {between(0, 31), between(0, 31)}};
    if (one_in(4)) request.min_new_tokens = between(0, request.max_new_tokens);
    if (one_in(6)) {
      const int32_t count = between(1, std::min(4, request.max_new_tokens));
      request.forced_ids = random_text(count);
    }
    request.report.prompt_logprobs = one_in(4);
    if (one_in(3)) request.priority = between(-1, 1);
    request.client = static_cast<uint32_t>(between(0, 2));
    request.stream = one_in(3);
    request.masked = one_in(5);
    Request& kept = generates_[id];
    for (int32_t i = 0; i < request.n; i++) kept.open.insert(i);
    kept.request = request;
    ASSERT_TRUE(engine_->submit(std::move(request)).is_ok());
  }

  void cancel() {
    if (next_id_ == 1) return;
    totals_.operations++;
    const RequestId id{static_cast<uint64_t>(
        random_.between(std::max<int64_t>(1, static_cast<int64_t>(next_id_) - 24),
                        static_cast<int64_t>(next_id_) - 1))};
    const Status status = engine_->cancel(id);
    if (status.is_ok()) totals_.cancelled++;
    std::erase_if(wanted_, [&](const MaskWanted& mask) { return mask.request == id; });
  }

  void update() {
    if (engine_->update_pending()) return;
    totals_.operations++;
    const auto slot = engine_->begin_update();
    ASSERT_TRUE(slot.is_ok());
    for (size_t i = 0; i < (*slot)->table().size(); i++) {
      const TensorSpec& spec = (*slot)->table()[i];
      const std::vector<std::byte> bytes(static_cast<size_t>(spec.rows * spec.columns) * 2);
      ASSERT_TRUE((*slot)->append(i, bytes).is_ok());
    }
    ASSERT_TRUE((*slot)->complete().is_ok());
    const auto policy = static_cast<UpdatePolicy>(random_.pick(std::vector<int>{0, 1, 1, 1, 2}));
    ASSERT_TRUE(engine_->commit_update(WeightVersion{++version_}, policy).is_ok());
    totals_.versions++;
  }

  void answer_masks(size_t count) {
    for (; count > 0 && !wanted_.empty(); count--) {
      totals_.operations++;
      totals_.masks++;
      const auto which = static_cast<size_t>(random_.between(0, std::ssize(wanted_) - 1));
      std::swap(wanted_[which], wanted_.back());
      const MaskWanted mask = wanted_.back();
      wanted_.pop_back();
      std::vector<int32_t> all(32);
      for (int32_t i = 0; i < 32; i++) all[static_cast<size_t>(i)] = i;
      ASSERT_EQ(engine_->allow(mask.request, mask.sample_index, mask.index + 1, all).code(),
                Code::not_found);
      const Status status = engine_->allow(mask.request, mask.sample_index, mask.index, all);
      ASSERT_TRUE(status.is_ok()) << status.to_string();
      ASSERT_EQ(engine_->allow(mask.request, mask.sample_index, mask.index, all).code(),
                Code::not_found)
          << "it was answered already";
    }
  }

  void step() {
    const bool can_step = engine_->can_step();
    auto report = engine_->step();
    ASSERT_TRUE(report.is_ok()) << report.status().to_string();
    totals_.operations++;
    totals_.steps++;
    const bool did_nothing = report->prefill_rows + report->decode_rows == 0 &&
                             report->samples.empty() && report->scores.empty() &&
                             report->masks_wanted.empty() && !report->committed;
    ASSERT_TRUE(can_step || did_nothing) << "a step that could not be, did something";
    ASSERT_LE(report->prefill_rows + report->decode_rows, limits_.max_step_tokens);
    ASSERT_LE(engine_->status().running, limits_.max_running);
    ASSERT_TRUE(!did_nothing || !engine_->can_step());
    if (report->prefill_rows + report->decode_rows > 0) {
      weights_[engine_->status().version] = backend_.weights_identity;
    }
    totals_.preempted += report->preempted;
    totals_.swapped_out += report->swapped_out;
    totals_.swapped_in += report->swapped_in;
    totals_.reused_rows += report->reused_rows;
    for (const MaskWanted& mask : report->masks_wanted) wanted_.push_back(mask);
    for (const SampleProgress& progress : report->progress) check_progress(progress);
    for (const SampleResult& sample : report->samples) check_sample(sample);
    for (const ScoreResult& score : report->scores) check_score(score);
  }

  void check_progress(const SampleProgress& progress) {
    auto found = generates_.find(progress.request);
    ASSERT_NE(found, generates_.end());
    ASSERT_TRUE(found->second.request.stream);
    auto& streamed = found->second.streamed[progress.sample_index];
    ASSERT_EQ(static_cast<size_t>(progress.begin), streamed.size());
    ASSERT_EQ(progress.tokens.size(), progress.logprobs.size());
    streamed.insert(streamed.end(), progress.tokens.begin(), progress.tokens.end());
  }

  uint64_t hash_of(WeightVersion version, std::span<const int32_t> ids) const {
    uint64_t hash = ChainBackend::before_text(weights_.at(version));
    for (const int32_t id : ids) hash = ChainBackend::extend(hash, id);
    return hash;
  }

  void check_sample(const SampleResult& sample) {
    const auto found = generates_.find(sample.request);
    ASSERT_NE(found, generates_.end());
    const GenerateRequest& request = found->second.request;
    const std::string what = "request " + std::to_string(sample.request.value) + ", sample " +
                             std::to_string(sample.sample_index) + " of " +
                             std::to_string(request.n) + ", prompt of " +
                             std::to_string(request.prompt.size());
    ASSERT_EQ(found->second.open.erase(sample.sample_index), 1u) << "answered twice";
    if (request.stream) {
      ASSERT_BITS_EQ(sample.tokens, found->second.streamed[sample.sample_index],
                     "streamed " + what);
    }
    check_tokens(request, sample, what);
    check_end(request, sample, what);
    check_prompt(request, sample, what);
    totals_.finished++;
    std::erase_if(wanted_, [&](const MaskWanted& mask) {
      return mask.request == sample.request && mask.sample_index == sample.sample_index;
    });
    if (found->second.open.empty()) generates_.erase(found);
  }

  void check_tokens(const GenerateRequest& request, const SampleResult& sample,
                    const std::string& what) {
    std::vector<int32_t> text = request.prompt;
    size_t span = 0;
    uint64_t hash = 0;
    for (size_t i = 0; i < sample.tokens.size(); i++) {
      const bool enters =
          span < sample.versions.size() && static_cast<size_t>(sample.versions[span].begin) == i;
      if (enters) hash = hash_of(sample.versions[span++].version, text);
      SampleRow row;
      row.seed = request.sampling.seed;
      row.sample_index = static_cast<uint32_t>(sample.sample_index);
      row.position = static_cast<int32_t>(text.size());
      SampleDetail detail;
      if (i < request.forced_ids.size()) detail.forced_token = request.forced_ids[i];
      row.detail = &detail;
      const SampleOutcome want = ChainBackend::draw(hash, row, config_.vocabulary);
      ASSERT_EQ(sample.tokens[i], want.token) << "token " << i << " of " << what;
      ASSERT_EQ(sample.logprobs[i], want.logprob) << what;
      ASSERT_EQ(sample.processed_logprobs[i], want.processed_logprob) << what;
      text.push_back(want.token);
      hash = ChainBackend::extend(hash, want.token);
    }
    ASSERT_EQ(span, sample.versions.size()) << what;
  }

  // Where the rules would have stopped it, at the first place.
  void check_end(const GenerateRequest& request, const SampleResult& sample,
                 const std::string& what) {
    size_t stop_at = SIZE_MAX;
    for (size_t count = 1; count <= sample.tokens.size() && stop_at == SIZE_MAX; count++) {
      if (static_cast<int32_t>(count) < request.min_new_tokens) continue;
      if (count < request.forced_ids.size()) continue;
      const auto made = std::span(sample.tokens).first(count);
      bool stops = std::ranges::count(request.stop_ids, made.back()) > 0;
      for (const auto& stop : request.stop_sequences) {
        stops = stops || (count >= stop.size() && std::ranges::equal(made.last(stop.size()), stop));
      }
      if (stops) stop_at = count;
    }
    if (sample.reason == FinishReason::stop) {
      ASSERT_EQ(stop_at, sample.tokens.size()) << what;
    } else {
      ASSERT_EQ(stop_at, SIZE_MAX) << "it should have stopped; " << what;
      if (sample.reason == FinishReason::length) {
        ASSERT_EQ(sample.tokens.size(), static_cast<size_t>(request.max_new_tokens)) << what;
      } else {
        ASSERT_TRUE(sample.reason == FinishReason::cancelled ||
                    sample.reason == FinishReason::aborted)
            << what;
      }
    }
  }

  void check_prompt(const GenerateRequest& request, const SampleResult& sample,
                    const std::string& what) {
    if (!request.report.prompt_logprobs) {
      ASSERT_TRUE(sample.prompt_logprobs.empty()) << what;
      return;
    }
    if (sample.tokens.empty()) return;
    check_text(request.prompt, sample.prompt_logprobs, sample.versions.front().version, what);
  }

  void check_text(const std::vector<int32_t>& text, const std::vector<float>& logprobs,
                  WeightVersion version, const std::string& what) {
    ASSERT_EQ(logprobs.size(), text.size() - 1) << what;
    uint64_t hash = ChainBackend::before_text(weights_.at(version));
    for (size_t i = 0; i + 1 < text.size(); i++) {
      hash = ChainBackend::extend(hash, text[i]);
      ASSERT_EQ(logprobs[i], ChainBackend::logprob(hash, text[i + 1]))
          << "position " << i << " of " << what;
    }
  }

  void check_score(const ScoreResult& score) {
    const auto found = scores_.find(score.request);
    ASSERT_NE(found, scores_.end());
    if (score.error.is_ok()) {
      check_text(found->second, score.logprobs, score.version, "a score");
      totals_.finished++;
    }
    scores_.erase(found);
  }

  void check() {
    if (testing::Test::HasFatalFailure()) return;
    const Status integrity = engine_->check_integrity();
    ASSERT_TRUE(integrity.is_ok()) << integrity.to_string();
  }

  RandomData& random_;
  Totals& totals_;
  ModelConfig config_;
  EngineLimits limits_;
  ChainBackend backend_;
  std::unique_ptr<Engine> engine_;
  std::map<WeightVersion, uint64_t> weights_;  // the identity of each that computed
  uint64_t next_id_ = 1, version_ = 1;
  std::map<RequestId, Request> generates_;
  std::map<RequestId, std::vector<int32_t>> scores_;
  std::vector<MaskWanted> wanted_;
};

TEST(EngineSimulation, AMillionOperationsKeepEveryRuleAndComeToAnEnd) {
  RandomData random;
  Totals totals;
  for (int episode = 0; totals.operations < 1'000'000; episode++) {
    Simulation simulation(random, totals);
    SCOPED_TRACE(random.describe() + ", episode " + std::to_string(episode) + ": " +
                 simulation.describe());
    for (int i = 0; i < 2000 && !HasFatalFailure(); i++) simulation.operate();
    if (!HasFatalFailure()) simulation.drain();
    if (HasFatalFailure()) return;
  }
  std::cout << "operations " << totals.operations << ", steps " << totals.steps << ", finished "
            << totals.finished << ", cancelled " << totals.cancelled << ", versions "
            << totals.versions << ", masks " << totals.masks << ", preempted " << totals.preempted
            << ", swapped out " << totals.swapped_out << ", in " << totals.swapped_in
            << ", reused rows " << totals.reused_rows << ", evicted " << totals.evicted
            << ", copied " << totals.copied << "\n";
  for (const int64_t count : {totals.finished, totals.preempted, totals.swapped_out,
                              totals.swapped_in, totals.reused_rows, totals.masks}) {
    EXPECT_GT(count, 5'000);
  }
  EXPECT_GT(totals.cancelled, 500);
  EXPECT_GT(totals.versions, 500);
  EXPECT_GT(totals.evicted, 5'000u);
  EXPECT_GT(totals.copied, 5'000u);
}

}  // namespace
}  // namespace exact
