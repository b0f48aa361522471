// engine_impl.h owns the engine's inside: who is running, who waits, which weights are live.
// engine.cc is the public face and limits, requests.cc has submit, cancel, allow and the end of a
// sequence, step.cc plans and moves sequences, step_rows.cc gathers and runs rows, outcomes.cc
// applies what came out, update.cc changes weights, sleep.cc gives memory away.
#pragma once

#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/kv_cache.h"
#include "engine/model.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/slot_table.h"
#include "engine/swap_space.h"
#include "engine/waiting_queue.h"

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
  bool can_step() const { return has_work() && !is_stalled_; }
  Result<StepReport> step();

  Result<WeightSlot*> begin_update(const UpdateOptions& options);
  Status commit_update(WeightVersion version, UpdatePolicy policy);
  void abort_update(std::string_view why);
  WeightSlot& live_weights() { return *live_; }
  bool update_pending() const { return update_pending_; }
  Result<uint64_t> sleep(bool keep_weights);
  Status wake();

  EngineStatus status() const;
  Status check_integrity() const;
  uint64_t last_logits_hash() const;
  const ModelConfig& config() const { return config_; }
  const EngineLimits& limits() const { return limits_; }
  Digest128 contract() const { return contract_; }

 private:
  // Rows of logits that a step computes for sequences that draw a token, and for texts to score.
  struct ScoredRow {
    int32_t group;
    int32_t position;
  };

  Impl(const ModelConfig& config, Backend& backend, const EngineLimits& limits,
       const SchedulerLimits& scheduler_limits);

  // ---- requests.cc
  Status check_capacity(RequestId request, int32_t sequences) const;
  SequenceGroup& add_group(RequestId request, int32_t members);
  void end_group(SequenceGroup& group, FinishReason reason, const Status& error,
                 StepReport& report);
  void want_mask(Sequence& sequence, const SequenceGroup& group, StepReport& report);
  // Whether its client must answer before it can run.
  bool waits_for_client(const Sequence& sequence) const;
  // A sequence that does not run: to the queue, or aside while it waits for its client.
  void queue_or_park(Sequence& sequence);
  // Ends a sequence: its pages go back, its result goes to `report`. Its slot lives until sweep().
  void finish(Sequence& sequence, FinishReason reason, Status error, StepReport& report);
  void take_reports(Sequence& sequence, const SequenceGroup& group, SampleResult& result);
  void sweep();

  // ---- update.cc
  Status check_begin(const UpdateOptions& options) const;
  Result<WeightSlot*> begin_in_place(const UpdateOptions& options);
  Status check_commit(WeightVersion version, UpdatePolicy policy) const;
  void apply_pending_update(StepReport& report);
  bool any_started() const;
  void abort_started(StepReport& report);
  void forget_kv(Sequence& sequence);
  void forget_all_kv();
  void keep_kv();
  void make_live();
  WeightSlot& open_slot() { return in_place_ ? *live_ : *staging_; }
  // No step computes anything: there are no weights to compute with.
  bool is_paused() const { return in_place_ || health_ != EngineHealth::serving; }
  bool admits_started_only() const {
    return update_pending_ && pending_policy_ == UpdatePolicy::wait;
  }

  // ---- sleep.cc
  Status take_cache();
  void drop_staging_and_cache();

  // ---- step.cc
  void plan();
  void list_running();
  void list_waiting();
  void move_sequences(StepReport& report);
  void preempt(const Preemption& preemption, StepReport& report);
  void admit(size_t candidate, StepReport& report);
  void swap_out(Sequence& sequence);
  void swap_in(Sequence& sequence);
  void give_pages();
  void start(Sequence& sequence);
  void sort_running();

  // ---- step_rows.cc
  void gather_inputs(StepReport& report);
  void gather_draws(const Sequence& sequence, int64_t row);
  void gather_details();
  void fill_detail(Sequence& sequence, std::vector<int32_t>& kept, SampleDetail& detail);
  void gather_scores(const PlannedChunk& chunk, int64_t first_row);
  void run();

  // ---- outcomes.cc
  void apply_outcomes(StepReport& report);
  void fork(SequenceGroup& group);
  void append_token(Sequence& sequence, const SampleOutcome& outcome, std::span<const int32_t> kept,
                    StepReport& report);
  Status check_outcome(const Sequence& sequence, const SampleOutcome& outcome,
                       std::span<const int32_t> kept) const;
  void record_token(Sequence& sequence, const SampleOutcome& outcome, std::span<const int32_t> kept,
                    StepReport& report);
  bool is_stopped(const Sequence& sequence, const SequenceGroup& group) const;
  void finish_scores(StepReport& report);

  Sequence& sequence(SequenceId id) { return sequences_[id.value]; }
  const Sequence& sequence(SequenceId id) const { return sequences_[id.value]; }
  SequenceGroup& group_of(const Sequence& sequence) { return groups_[sequence.group]; }
  const SequenceGroup& group_of(const Sequence& sequence) const { return groups_[sequence.group]; }

  ModelConfig config_;
  Backend& backend_;
  EngineLimits limits_;
  SchedulerLimits scheduler_limits_;
  Digest128 contract_;
  std::unique_ptr<Model> model_;
  KvGeometry geometry_;
  KvCache cache_;  // without storage while the engine sleeps
  KvPages pages_;
  SwapSpace swap_;

  std::unique_ptr<WeightSlot> live_, staging_;
  Digest128 live_digest_;  // of live_
  WeightVersion version_{1};
  bool update_open_ = false;     // between begin_update and commit or abort
  bool update_pending_ = false;  // committed, not live yet
  bool in_place_ = false;        // the open or pending update is
  EngineHealth health_ = EngineHealth::serving;
  std::string health_reason_;
  std::optional<SavedWeights> saved_;  // while asleep, if they are kept
  WeightVersion pending_version_;
  UpdatePolicy pending_policy_ = UpdatePolicy::wait;

  SlotTable<Sequence> sequences_;
  SlotTable<SequenceGroup> groups_;
  std::unordered_map<RequestId, int32_t> open_groups_;
  std::vector<SequenceId> running_;  // highest priority first, then oldest first
  std::vector<SequenceId> ended_;    // since the last sweep
  WaitingQueue waiting_;
  uint64_t next_age_ = 1;
  StepReport early_;         // what no step made: cancelled sequences, first masks that are wanted
  bool is_stalled_ = false;  // the last step did nothing, and nothing has come since

  // The step in hand; kept to reuse the memory.
  std::vector<SequenceState> running_states_, waiting_states_;
  std::vector<std::vector<int32_t>> found_pages_;  // of waiting_states_
  StepPlan plan_;
  std::vector<int32_t> copies_from_, copies_to_;
  std::vector<int32_t> ids_, positions_;
  std::vector<SequenceChunk> chunks_;
  std::vector<int64_t> logit_rows_;
  int64_t drawn_rows_ = 0;  // of logit_rows_, the first ones
  std::vector<SequenceId> drawn_;
  std::vector<SampleRow> sample_rows_;
  std::vector<SampleDetail> details_;           // of sample_rows_; some unused
  std::vector<std::vector<int32_t>> kept_ids_;  // of sample_rows_
  std::vector<SampleOutcome> outcomes_;
  std::vector<ScoredRow> scored_;
  std::vector<int32_t> score_targets_;
  std::vector<float> score_logprobs_;
  TensorView last_logits_;
  bool failed_ = false;
  uint64_t steps_ = 0, tokens_generated_ = 0, pages_copied_ = 0;
};

}  // namespace exact
