// Updates over running sequences (keep), by changes to a base version, in place, and around a
// sleep: each against the same tokens computed literally, row by row, on their own.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "engine/engine.h"
#include "engine/hash_model.h"
#include "engine/model.h"
#include "tests/engine/tiny_engine.h"
#include "tests/support/expect_bits.h"
#include "tests/support/model_fixture.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

class UpdateModes : public TinyEngineTest {
 protected:
  // Its weights of version v are the hash of seed v.
  std::unique_ptr<Engine> make_engine(EngineLimits limits = {}) {
    if (limits.max_context == 0) limits.max_context = 128;
    auto engine = Engine::create(config_, *backend_, hash_slot(config_, *backend_, 1), limits);
    EXPECT_TRUE(engine.is_ok()) << engine.status().to_string();
    return std::move(engine).value();
  }

  static GenerateRequest request(uint64_t id, int32_t max_new_tokens, int32_t n = 1) {
    GenerateRequest request;
    request.id = RequestId{id};
    for (int32_t i = 0; i < 5 + static_cast<int32_t>(id % 23); i++) {
      request.prompt.push_back((i * 7 + static_cast<int32_t>(id)) % 128);
    }
    request.n = n;
    request.max_new_tokens = max_new_tokens;
    request.sampling.seed = id;
    return request;
  }

  Status append(WeightSlot& slot, size_t i, uint64_t seed) {
    const TensorSpec& spec = slot.table()[i];
    std::vector<uint16_t> values(static_cast<size_t>(spec.rows * spec.columns));
    hash_tensor(spec, config_, seed, values);
    return slot.append(i, std::as_bytes(std::span(values)));
  }

  void fill(WeightSlot& slot, uint64_t seed) {
    for (size_t i = 0; i < slot.table().size(); i++) ASSERT_TRUE(append(slot, i, seed).is_ok());
    ASSERT_TRUE(slot.complete().is_ok());
  }

  void update(Engine& engine, uint64_t version, UpdatePolicy policy, UpdateOptions options = {}) {
    options.policy = policy;
    const auto slot = engine.begin_update(options);
    ASSERT_TRUE(slot.is_ok()) << slot.status().to_string();
    fill(**slot, version);
    const Status committed = engine.commit_update(WeightVersion{version}, policy);
    ASSERT_TRUE(committed.is_ok()) << committed.to_string();
  }

  static bool step_into(Engine& engine, StepReport& all) {
    auto report = engine.step();
    EXPECT_TRUE(report.is_ok()) << report.status().to_string();
    if (!report.is_ok()) return false;
    for (auto& sample : report->samples) all.samples.push_back(std::move(sample));
    for (auto& score : report->scores) all.scores.push_back(std::move(score));
    all.preempted += report->preempted;
    all.swapped_out += report->swapped_out;
    EXPECT_TRUE(engine.check_integrity().is_ok()) << engine.check_integrity().message();
    return true;
  }

  static StepReport run_all(Engine& engine) {
    StepReport all;
    while (engine.can_step() && step_into(engine, all)) {
    }
    EXPECT_FALSE(engine.has_work());
    return all;
  }

  const ModelWeights& weights_of(uint64_t version) {
    auto& slot = slots_[version];
    if (slot == nullptr) slot = hash_slot(config_, *backend_, version);
    return slot->weights();
  }

  // What the spans say, one row after the other in a cache of its own.
  std::vector<float> literal_logprobs(const GenerateRequest& request, const SampleResult& sample) {
    std::vector<int32_t> text = request.prompt;
    text.insert(text.end(), sample.tokens.begin(), sample.tokens.end());
    auto model = Model::create(config_, *backend_, {1, 512});
    auto cache =
        backend_->allocate_kv({config_.layers, 16, 32, config_.kv_heads, config_.head_width});
    EXPECT_TRUE(model.is_ok() && cache.is_ok());
    std::vector<int32_t> pages(16);
    std::iota(pages.begin(), pages.end(), 0);
    std::vector<float> logprobs(sample.tokens.size());
    const auto row = [&](uint64_t version, int32_t position, float* logprob) {
      const SequenceChunk chunk{0, 1, position, pages};
      const auto at = static_cast<size_t>(position);
      const StepRows rows{std::span(text).subspan(at, 1), std::span(&position, 1),
                          std::span(&chunk, 1)};
      (*model)->forward(weights_of(version), rows, *cache);
      const int64_t first = 0;
      if (logprob != nullptr) {
        const TensorView logits = (*model)->logits(weights_of(version), std::span(&first, 1));
        backend_->target_logprobs(logits, std::span(text).subspan(at + 1, 1),
                                  std::span(logprob, 1));
      }
      EXPECT_TRUE(backend_->finish().is_ok());
    };
    const auto prompt = static_cast<int32_t>(request.prompt.size());
    for (size_t s = 0; s < sample.versions.size(); s++) {
      const VersionSpan& span = sample.versions[s];
      const int32_t end = s + 1 < sample.versions.size()
                              ? sample.versions[s + 1].begin
                              : static_cast<int32_t>(sample.tokens.size());
      if (s == 0 || span.kv_rebuilt) {
        for (int32_t p = 0; p < prompt + span.begin - 1; p++) row(span.version.value, p, nullptr);
      }
      for (int32_t i = span.begin; i < end; i++) {
        row(span.version.value, prompt + i - 1, &logprobs[static_cast<size_t>(i)]);
      }
    }
    return logprobs;
  }

  void expect_literal(const GenerateRequest& request, const SampleResult& sample) {
    ASSERT_FALSE(sample.versions.empty());
    EXPECT_BITS_EQ(std::span<const float>(sample.logprobs),
                   std::span<const float>(literal_logprobs(request, sample)),
                   "request " + std::to_string(request.id.value) + " sample " +
                       std::to_string(sample.sample_index));
  }

  std::map<uint64_t, std::unique_ptr<WeightSlot>> slots_;
};

TEST_F(UpdateModes, KeepGoesOnOverTheKeysAndValuesOfTheOldVersion) {
  auto engine = make_engine();
  ASSERT_TRUE(engine->submit(request(40, 20)).is_ok());
  StepReport all;
  for (int i = 0; i < 6; i++) ASSERT_TRUE(step_into(*engine, all));
  update(*engine, 2, UpdatePolicy::keep);
  const StepReport report = run_all(*engine);
  const SampleResult& sample = report.samples.at(0);
  ASSERT_EQ(sample.versions.size(), 2u);
  EXPECT_EQ(sample.versions[1].begin, 6);
  EXPECT_FALSE(sample.versions[1].kv_rebuilt);
  expect_literal(request(40, 20), sample);
  // It is not what rebuilding gives: the test can tell the two apart.
  SampleResult rebuilt = sample;
  rebuilt.versions[1].kv_rebuilt = true;
  EXPECT_NE(literal_logprobs(request(40, 20), rebuilt), sample.logprobs);
}

TEST_F(UpdateModes, WhatIsKeptIsFoundByNobodyElse) {
  auto engine = make_engine();
  GenerateRequest first = request(1, 60);
  first.prompt.assign(60, 9);  // its first page fills up after the update
  ASSERT_TRUE(engine->submit(first).is_ok());
  StepReport all;
  for (int i = 0; i < 3; i++) ASSERT_TRUE(step_into(*engine, all));
  update(*engine, 2, UpdatePolicy::keep);
  for (int i = 0; i < 20; i++) ASSERT_TRUE(step_into(*engine, all));
  GenerateRequest second = first;
  second.id = RequestId{2};
  second.prompt.resize(90, 9);
  second.max_new_tokens = 4;
  ASSERT_TRUE(engine->submit(second).is_ok());
  for (const SampleResult& sample : run_all(*engine).samples) {
    expect_literal(sample.request.value == 1 ? first : second, sample);
  }
}

// Few pages, so that sequences are preempted to be recomputed or swapped, and updates of every
// policy that leaves samples running, whenever.
TEST_F(UpdateModes, TheSpansDetermineEveryBitWhateverTheSchedule) {
  const uint64_t seed = 20'261;
  RandomData random(seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  int32_t preempted = 0, swapped = 0, rebuilt = 0, kept = 0, remade = 0;
  for (int episode = 0; episode < 8; episode++) {
    EngineLimits limits;
    limits.max_context = 64;
    limits.page_size = 16;
    limits.page_count = 9;
    limits.max_step_tokens = 7;
    limits.max_running = 4;
    limits.swap_bytes = episode % 2 == 0 ? 0 : 200'000;
    limits.row_cost_bytes = 1 << 20;
    auto engine = make_engine(limits);
    std::map<uint64_t, GenerateRequest> requests;
    for (uint64_t id = 1; id <= 6; id++) {
      requests[id] = request(id, 30, id % 3 == 0 ? 3 : 1);
      ASSERT_TRUE(engine->submit(requests[id]).is_ok());
    }
    StepReport all;
    uint64_t version = 1;
    for (int step = 0; engine->has_work(); step++) {
      ASSERT_TRUE(step_into(*engine, all));
      if (version < 6 && !engine->update_pending() && random.between(0, 39) == 0) {
        const bool keeps = random.between(0, 3) > 0;
        update(*engine, ++version, keeps ? UpdatePolicy::keep : UpdatePolicy::recompute);
      }
    }
    preempted += all.preempted, swapped += all.swapped_out;
    ASSERT_EQ(all.samples.size(), 10u);
    for (const SampleResult& sample : all.samples) {
      expect_literal(requests[sample.request.value], sample);
      for (size_t s = 1; s < sample.versions.size(); s++) {
        const VersionSpan &span = sample.versions[s], &before = sample.versions[s - 1];
        rebuilt += span.kv_rebuilt, kept += !span.kv_rebuilt;
        remade += span.version == before.version;
      }
    }
  }
  EXPECT_GT(preempted, 0);
  EXPECT_GT(swapped, 0);
  EXPECT_GT(rebuilt, 0);
  EXPECT_GT(kept, 0);
  EXPECT_GT(remade, 0) << "a kept sequence that lost its pages says so in a span of its own";
}

TEST_F(UpdateModes, ChangesToABaseAreTheWholeUpdate) {
  for (const bool in_place : {false, true}) {
    auto engine = make_engine();
    auto whole = make_engine();
    ASSERT_TRUE(engine->submit(request(3, 12)).is_ok());
    ASSERT_TRUE(whole->submit(request(3, 12)).is_ok());
    StepReport all, expected;
    for (int i = 0; i < 4; i++) {
      ASSERT_TRUE(step_into(*engine, all));
      ASSERT_TRUE(step_into(*whole, expected));
    }
    EXPECT_EQ(engine->begin_update({WeightVersion{7}, in_place}).status().code(), Code::invalid);
    const auto slot = engine->begin_update({WeightVersion{1}, in_place});
    const auto other = whole->begin_update();
    ASSERT_TRUE(slot.is_ok() && other.is_ok());
    for (size_t i = 0; i < (*slot)->table().size(); i++) {
      const bool is_changed = i % 3 == 1;
      if (is_changed) {
        ASSERT_TRUE(append(**slot, i, 2).is_ok());
        EXPECT_EQ(append(**slot, i, 2).code(), Code::invalid) << "a tensor comes once";
      }
      ASSERT_TRUE(append(**other, i, is_changed ? 2 : 1).is_ok());
    }
    ASSERT_TRUE((*slot)->complete().is_ok());
    ASSERT_TRUE((*other)->complete().is_ok());
    ASSERT_TRUE(engine->commit_update(WeightVersion{2}, UpdatePolicy::recompute).is_ok());
    ASSERT_TRUE(whole->commit_update(WeightVersion{2}, UpdatePolicy::recompute).is_ok());
    all = run_all(*engine);
    expected = run_all(*whole);
    EXPECT_EQ(engine->status().weights_digest, whole->status().weights_digest);
    EXPECT_EQ(all.samples.at(0).tokens, expected.samples.at(0).tokens);
    EXPECT_BITS_EQ(std::span<const float>(all.samples[0].logprobs),
                   std::span<const float>(expected.samples[0].logprobs), "changes");
    EXPECT_EQ(engine->status().version.value, 2u);
  }
}

TEST_F(UpdateModes, AChangedTensorThatIsCutShortIsMissed) {
  auto engine = make_engine();
  const auto slot = engine->begin_update({WeightVersion{1}, false});
  ASSERT_TRUE(slot.is_ok());
  ASSERT_TRUE((*slot)->append(0, std::vector<std::byte>(2)).is_ok());
  EXPECT_EQ((*slot)->complete().code(), Code::invalid);
  engine->abort_update();
  ASSERT_TRUE(engine->submit(request(3, 4)).is_ok());
  expect_literal(request(3, 4), run_all(*engine).samples.at(0));
}

TEST_F(UpdateModes, ASleepChangesNoBit) {
  for (const int32_t steps : {0, 1, 5}) {
    auto engine = make_engine();
    ASSERT_TRUE(engine->submit(request(4, 16, 2)).is_ok());
    StepReport all;
    for (int i = 0; i < steps; i++) ASSERT_TRUE(step_into(*engine, all));
    const auto freed = engine->sleep(true);
    ASSERT_TRUE(freed.is_ok()) << freed.status().to_string();
    EXPECT_GT(*freed, 100'000u);
    EXPECT_EQ(engine->status().health, EngineHealth::sleeping);
    EXPECT_EQ(engine->sleep(true).status().code(), Code::invalid);
    ASSERT_TRUE(engine->submit(request(5, 8)).is_ok());
    ASSERT_TRUE(engine->submit(request(6, 8)).is_ok());
    ASSERT_TRUE(engine->cancel(RequestId{6}, FinishReason::deadline).is_ok());
    while (engine->can_step()) ASSERT_TRUE(step_into(*engine, all));
    ASSERT_EQ(all.samples.size(), 1u) << "one ended while the engine slept, none ran";
    EXPECT_EQ(all.samples[0].reason, FinishReason::deadline);
    EXPECT_EQ(engine->begin_update({WeightVersion{1}, false}).status().code(), Code::invalid);
    ASSERT_TRUE(engine->wake().is_ok());
    ASSERT_TRUE(engine->wake().is_ok()) << "awake is awake";
    const StepReport report = run_all(*engine);
    ASSERT_EQ(report.samples.size(), 3u);
    for (const SampleResult& sample : report.samples) {
      EXPECT_EQ(sample.versions.size(), 1u);
      expect_literal(sample.request.value == 4 ? request(4, 16, 2) : request(5, 8), sample);
    }
  }
}

TEST_F(UpdateModes, AWholeUpdateWakes) {
  for (const bool keep_weights : {false, true}) {
    auto engine = make_engine();
    ASSERT_TRUE(engine->submit(request(4, 16)).is_ok());
    StepReport all;
    for (int i = 0; i < 5; i++) ASSERT_TRUE(step_into(*engine, all));
    ASSERT_TRUE(engine->sleep(keep_weights).is_ok());
    if (!keep_weights) {
      EXPECT_EQ(engine->wake().code(), Code::invalid);
    }
    const auto slot = engine->begin_update();
    ASSERT_TRUE(slot.is_ok());
    EXPECT_EQ(engine->wake().code(), Code::exhausted);
    ASSERT_TRUE(append(**slot, 0, 2).is_ok());
    engine->abort_update();
    EXPECT_EQ(engine->status().health, EngineHealth::sleeping) << "as before";
    update(*engine, 2, UpdatePolicy::wait);
    const StepReport report = run_all(*engine);
    EXPECT_EQ(engine->status().health, EngineHealth::serving);
    ASSERT_EQ(report.samples.at(0).versions.size(), 2u);
    EXPECT_TRUE(report.samples[0].versions[1].kv_rebuilt);
    expect_literal(request(4, 16), report.samples[0]);
    ASSERT_TRUE(engine->sleep(true).is_ok());
    ASSERT_TRUE(engine->wake().is_ok());
  }
}

TEST_F(UpdateModes, OneSetOfWeightsIsUpdatedInPlace) {
  EngineLimits limits;
  limits.weight_slots = 1;
  auto engine = make_engine(limits);
  ASSERT_TRUE(engine->submit(request(7, 14)).is_ok());
  StepReport all;
  for (int i = 0; i < 5; i++) ASSERT_TRUE(step_into(*engine, all));
  EXPECT_EQ(engine->begin_update().status().code(), Code::invalid);
  EXPECT_EQ(engine->begin_update({{}, true, UpdatePolicy::wait}).status().code(), Code::exhausted);
  EXPECT_EQ(engine->begin_update({{}, true, UpdatePolicy::keep}).status().code(),
            Code::unsupported);

  // Given up before a byte was written: nothing has happened.
  ASSERT_TRUE(engine->begin_update({{}, true, UpdatePolicy::recompute}).is_ok());
  EXPECT_FALSE(engine->step()->committed.has_value());
  EXPECT_FALSE(engine->can_step());
  engine->abort_update();
  EXPECT_EQ(engine->status().health, EngineHealth::serving);
  ASSERT_TRUE(step_into(*engine, all));

  update(*engine, 2, UpdatePolicy::recompute, {{}, true, UpdatePolicy::recompute});
  const StepReport report = run_all(*engine);
  ASSERT_EQ(report.samples.at(0).versions.size(), 2u);
  expect_literal(request(7, 14), report.samples[0]);

  ASSERT_TRUE(engine->submit(request(8, 14)).is_ok());
  for (int i = 0; i < 5; i++) ASSERT_TRUE(step_into(*engine, all));
  update(*engine, 3, UpdatePolicy::abort, {{}, true, UpdatePolicy::abort});
  const StepReport ended = run_all(*engine);
  EXPECT_EQ(ended.samples.at(0).reason, FinishReason::aborted);
  expect_literal(request(8, 14), ended.samples[0]);
}

TEST_F(UpdateModes, AFailureHalfWayInPlacePoisonsUntilAWholeUpdate) {
  for (const bool is_aborted : {true, false}) {
    auto engine = make_engine();
    ASSERT_TRUE(engine->submit(request(7, 14)).is_ok());
    StepReport all;
    for (int i = 0; i < 5; i++) ASSERT_TRUE(step_into(*engine, all));
    const UpdateOptions in_place{{}, true, UpdatePolicy::recompute};
    const auto slot = engine->begin_update(in_place);
    ASSERT_TRUE(slot.is_ok());
    ASSERT_TRUE(append(**slot, 0, 2).is_ok());
    if (is_aborted) {
      engine->abort_update("its client is gone");
    } else {
      EXPECT_EQ(engine->commit_update(WeightVersion{2}, UpdatePolicy::recompute).code(),
                Code::invalid);
    }
    const EngineStatus status = engine->status();
    EXPECT_EQ(status.health, EngineHealth::poisoned);
    EXPECT_NE(status.health_reason.find("push a whole update"), std::string::npos);
    EXPECT_EQ(engine->submit(request(8, 4)).code(), Code::corrupt);
    EXPECT_EQ(engine->begin_update({WeightVersion{1}, true}).status().code(), Code::invalid);
    EXPECT_EQ(engine->sleep(true).status().code(), Code::invalid);
    while (engine->can_step()) ASSERT_TRUE(step_into(*engine, all));
    EXPECT_TRUE(all.samples.empty()) << "nothing runs on weights of two versions";

    // A second failure heals nothing, even before its first byte.
    ASSERT_TRUE(engine->begin_update(in_place).is_ok());
    engine->abort_update();
    EXPECT_EQ(engine->status().health, EngineHealth::poisoned);

    update(*engine, 3, UpdatePolicy::wait, is_aborted ? UpdateOptions{} : in_place);
    const StepReport report = run_all(*engine);
    EXPECT_EQ(engine->status().health, EngineHealth::serving);
    EXPECT_TRUE(engine->status().health_reason.empty());
    ASSERT_EQ(report.samples.at(0).versions.size(), 2u);
    EXPECT_EQ(report.samples[0].versions[1].version.value, 3u);
    expect_literal(request(7, 14), report.samples[0]);
    ASSERT_TRUE(engine->submit(request(8, 4)).is_ok());
    run_all(*engine);
  }
}

}  // namespace
}  // namespace exact
