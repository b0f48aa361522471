// step.cc owns one step of the engine: plan, run, apply. Before apply nothing has changed but the
// pages that the plan moved.
#include <algorithm>
#include <string>

#include "engine/engine_impl.h"
#include "engine/sampling.h"

namespace exact {

Result<StepReport> Engine::Impl::step() {
  if (failed_) return Status(Code::device, "the engine stopped after a failed step: start it anew");
  StepReport report = std::move(early_);
  early_ = {};
  apply_pending_update(report);
  plan();
  if (plan_.chunks.empty()) return report;
  apply_plan(report);
  gather_inputs(report);
  run();
  if (Status status = backend_.finish(); !status.is_ok()) {
    failed_ = true;
    return status;
  }
  apply_outcomes(report);
  steps_++;
#ifdef EXACT_CHECK_INTEGRITY
  EXACT_CHECK(pages_.check_integrity().is_ok(), "the page pool is broken");
#endif
  return report;
}

void Engine::Impl::plan() {
  const auto state_of = [this](const Sequence* sequence) {
    return SequenceState{sequence->id, sequence->computed, sequence->known(),
                         static_cast<int32_t>(pages_.pages(sequence->id).size())};
  };
  running_states_.clear();
  for (const Sequence* sequence : running_) running_states_.push_back(state_of(sequence));
  // More than max_running can't be admitted. While an update waits, only sequences that have begun
  // on the old version may come back.
  waiting_states_.clear();
  const bool closed = update_pending_ && pending_policy_ == UpdatePolicy::wait;
  for (const Sequence* sequence : waiting_) {
    if (static_cast<int32_t>(waiting_states_.size()) >= limits_.max_running) break;
    if (closed && !sequence->started) break;
    waiting_states_.push_back(state_of(sequence));
  }
  plan_step({running_states_, waiting_states_, pages_.free_pages(), false}, scheduler_limits_,
            plan_);
  EXACT_CHECK(!plan_.chunks.empty() || (running_states_.empty() && waiting_states_.empty()),
              "a plan without progress");
}

void Engine::Impl::apply_plan(StepReport& report) {
  for (const SequenceId id : plan_.preempt) {
    Sequence* sequence = sequences_.at(id).get();
    pages_.release(id);
    sequence->forget_kv();
    std::erase(running_, sequence);
    waiting_.push_front(sequence);
    report.preempted++;
  }
  for (int32_t i = 0; i < plan_.admit_count; i++) {
    running_.push_back(waiting_.front());
    waiting_.front()->started = true;
    waiting_.pop_front();
  }
  for (const PlannedChunk& chunk : plan_.chunks) {
    pages_.reserve(chunk.id, chunk.first_position + chunk.row_count);
  }
}

void Engine::Impl::gather_inputs(StepReport& report) {
  ids_.clear(), positions_.clear(), chunks_.clear();
  logit_rows_.clear(), sampled_.clear(), sample_rows_.clear();
  scored_.clear(), score_targets_.clear();
  for (const PlannedChunk& planned : plan_.chunks) {
    Sequence& sequence = *sequences_.at(planned.id);
    const auto first_row = static_cast<int64_t>(ids_.size());
    const int32_t end = planned.first_position + planned.row_count;
    EXACT_CHECK(planned.first_position == sequence.computed && end <= sequence.known(),
                "a chunk that does not continue its sequence");
    for (int32_t position = planned.first_position; position < end; position++) {
      ids_.push_back(sequence.tokens[static_cast<size_t>(position)]);
      positions_.push_back(position);
    }
    chunks_.push_back(
        {first_row, planned.row_count, planned.first_position, pages_.pages(planned.id)});
    const bool decoding = planned.row_count == 1 && planned.first_position >= sequence.prompt_size;
    (decoding ? report.decode_rows : report.prefill_rows) += planned.row_count;
    if (!sequence.is_score && end == sequence.known()) {
      sampled_.push_back(&sequence);
      sample_rows_.push_back(sample_row(sequence.sampling,
                                        static_cast<uint32_t>(sequence.sample_index), end,
                                        static_cast<int64_t>(sample_rows_.size())));
      logit_rows_.push_back(first_row + planned.row_count - 1);
    }
  }
  // Rows to score come after rows to sample, so that each kind is one block of logits.
  for (size_t c = 0; c < plan_.chunks.size(); c++) {
    const PlannedChunk& planned = plan_.chunks[c];
    Sequence& sequence = *sequences_.at(planned.id);
    if (!sequence.is_score) continue;
    for (int32_t i = 0; i < planned.row_count; i++) {
      const int32_t position = planned.first_position + i;
      scored_.push_back({&sequence, position});
      score_targets_.push_back(sequence.tokens[static_cast<size_t>(position) + 1]);
      logit_rows_.push_back(chunks_[c].first_row + i);
    }
  }
  outcomes_.assign(sample_rows_.size(), {});
  score_logprobs_.assign(score_targets_.size(), 0.0f);
}

void Engine::Impl::run() {
  const ModelWeights& weights = live_->weights();
  model_->forward(weights, {ids_, positions_, chunks_}, cache_);
  if (logit_rows_.empty()) return;
  const TensorView logits = model_->logits(weights, logit_rows_);
  const auto samples = static_cast<int64_t>(sample_rows_.size());
  const auto scores = static_cast<int64_t>(score_targets_.size());
  if (samples > 0) backend_.sample(logits.slice_rows(0, samples), sample_rows_, outcomes_);
  if (scores > 0) {
    backend_.target_logprobs(logits.slice_rows(samples, scores), score_targets_, score_logprobs_);
  }
  last_logits_ = logits.slice_rows(samples + scores - 1, 1);
}

void Engine::Impl::apply_outcomes(StepReport& report) {
  for (const PlannedChunk& chunk : plan_.chunks) {
    sequences_.at(chunk.id)->computed += chunk.row_count;
  }
  for (size_t i = 0; i < scored_.size(); i++) {
    scored_[i].sequence->logprobs[static_cast<size_t>(scored_[i].position)] = score_logprobs_[i];
  }
  for (size_t i = 0; i < sampled_.size(); i++) append_token(*sampled_[i], outcomes_[i], report);
  finish_scores(report);
}

void Engine::Impl::append_token(Sequence& sequence, const SampleOutcome& outcome,
                                StepReport& report) {
  if (outcome.token < 0) {
    return finish(sequence, FinishReason::error,
                  Status(Code::device, "a logit at position " + std::to_string(sequence.known()) +
                                           " is NaN or infinite: the weights of version " +
                                           std::to_string(version_.value) + " overflow here"),
                  report);
  }
  if (sequence.versions.empty() || sequence.versions.back().version != version_) {
    sequence.versions.push_back({sequence.generated(), version_, live_digest_});
  }
  sequence.tokens.push_back(outcome.token);
  sequence.logprobs.push_back(outcome.logprob);
  sequence.processed_logprobs.push_back(outcome.processed_logprob);
  tokens_generated_++;
  const bool stopped = std::find(sequence.stop_ids.begin(), sequence.stop_ids.end(),
                                 outcome.token) != sequence.stop_ids.end();
  if (stopped) {
    finish(sequence, FinishReason::stop, Status(), report);
  } else if (sequence.generated() >= sequence.max_new_tokens) {
    finish(sequence, FinishReason::length, Status(), report);
  }
}

void Engine::Impl::finish_scores(StepReport& report) {
  for (const PlannedChunk& chunk : plan_.chunks) {
    const auto found = sequences_.find(chunk.id);
    if (found == sequences_.end() || !found->second->is_score) continue;
    Sequence& sequence = *found->second;
    if (sequence.computed < sequence.known()) continue;
    const auto bad = std::find_if(sequence.logprobs.begin(), sequence.logprobs.end(),
                                  [](float value) { return value != value; });
    Status error;
    if (bad != sequence.logprobs.end()) {
      error = Status(Code::device, "a logit at position " +
                                       std::to_string(bad - sequence.logprobs.begin()) +
                                       " is NaN or infinite: these weights overflow here");
    }
    finish(sequence, FinishReason::length, std::move(error), report);
  }
}

EngineStatus Engine::Impl::status() const {
  EngineStatus status;
  status.running = static_cast<int32_t>(running_.size());
  status.waiting = static_cast<int32_t>(waiting_.size());
  status.pages_free = pages_.free_pages();
  status.pages_total = pages_.page_count();
  status.version = version_;
  status.weights_digest = live_digest_;
  status.steps = steps_;
  status.tokens_generated = tokens_generated_;
  return status;
}

uint64_t Engine::Impl::last_logits_hash() const {
  if (last_logits_.data == nullptr || failed_) return 0;
  std::vector<std::byte> row(static_cast<size_t>(last_logits_.columns) * 2);
  backend_.download(row, last_logits_);
  return backend_.finish().is_ok() ? digest64(row) : 0;
}

}  // namespace exact
