// engine_impl.h owns the engine's inside: who is running, who waits, which weights are live.
// engine.cc has requests and weights, step.cc has plan, run and apply.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/kv_cache.h"
#include "engine/model.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace exact {

class Engine::Impl {
 public:
  static Result<std::unique_ptr<Impl>> create(const ModelConfig& config, Backend& backend,
                                              std::unique_ptr<WeightSlot> weights,
                                              const EngineLimits& limits);

  Status submit(GenerateRequest request);
  Status submit(ScoreRequest request);
  Status cancel(RequestId request, FinishReason reason);
  Status allow(RequestId request, int32_t sample_index, int32_t index,
               std::span<const int32_t> ids);
  bool has_work() const;
  Result<StepReport> step();

  Result<WeightSlot*> begin_update();
  Status commit_update(WeightVersion version, UpdatePolicy policy);
  void abort_update() { update_open_ = false; }
  bool update_pending() const { return update_pending_; }

  EngineStatus status() const;
  uint64_t last_logits_hash() const;
  const ModelConfig& config() const { return config_; }
  const EngineLimits& limits() const { return limits_; }
  Digest128 contract() const { return contract_; }

 private:
  // Sequences of this step whose last row draws a token, and rows whose next token is scored.
  struct ScoredRow {
    Sequence* sequence;
    int32_t position;
  };

  Impl(const ModelConfig& config, Backend& backend, const EngineLimits& limits);
  Status check_capacity(size_t sequences) const;
  Sequence& enqueue(RequestId request);

  // Weights.
  void apply_pending_update(StepReport& report);
  void make_live();

  // Plan, run, apply (step.cc).
  void plan();
  void apply_plan(StepReport& report);
  void gather_inputs(StepReport& report);
  void run();
  void apply_outcomes(StepReport& report);
  void append_token(Sequence& sequence, const SampleOutcome& outcome, StepReport& report);
  void finish_scores(StepReport& report);

  // Ends a sequence: its pages go back, its result goes to `report`.
  void finish(Sequence& sequence, FinishReason reason, Status error, StepReport& report);
  void remove(Sequence& sequence);

  ModelConfig config_;
  Backend& backend_;
  EngineLimits limits_;
  SchedulerLimits scheduler_limits_;
  Digest128 contract_;
  std::unique_ptr<Model> model_;
  KvCache cache_;
  PagePool pages_;

  std::unique_ptr<WeightSlot> live_, staging_;
  Digest128 live_digest_;  // of live_
  WeightVersion version_{1};
  bool update_open_ = false;     // between begin_update and commit or abort
  bool update_pending_ = false;  // committed, not live yet
  WeightVersion pending_version_;
  UpdatePolicy pending_policy_ = UpdatePolicy::wait;

  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::unordered_map<RequestId, int32_t> open_sequences_;  // of each request
  std::vector<Sequence*> running_;                         // oldest first
  std::deque<Sequence*> waiting_;                          // preempted ones in front
  uint64_t next_sequence_ = 1;
  StepReport early_;  // results that no step made: cancelled sequences

  // The step in hand; kept to reuse the memory.
  std::vector<SequenceState> running_states_, waiting_states_;
  StepPlan plan_;
  std::vector<int32_t> ids_, positions_;
  std::vector<SequenceChunk> chunks_;
  std::vector<int64_t> logit_rows_;
  std::vector<Sequence*> sampled_;
  std::vector<SampleRow> sample_rows_;
  std::vector<SampleOutcome> outcomes_;
  std::vector<ScoredRow> scored_;
  std::vector<int32_t> score_targets_;
  std::vector<float> score_logprobs_;
  TensorView last_logits_;
  bool failed_ = false;
  uint64_t steps_ = 0, tokens_generated_ = 0;
};

}  // namespace exact
