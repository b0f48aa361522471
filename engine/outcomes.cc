// outcomes.cc owns what a step's draws and scores do to its sequences: a token more, a fork, an
// end.
#include <algorithm>
#include <string>

#include "engine/engine_impl.h"
#include "engine/sampling.h"

namespace exact {

void Engine::Impl::apply_outcomes(StepReport& report) {
  for (const PlannedChunk& chunk : plan_.chunks) {
    Sequence& running = sequence(chunk.id);
    running.computed += chunk.row_count;
    if (!running.has_mixed_kv) pages_.publish(running.kv, running.tokens, running.computed);
    if (!running.scores_text) continue;
    SequenceGroup& group = group_of(running);
    if (group.text_rows_done < group.text_rows()) {
      group.text_rows_done = std::min(running.computed, group.text_rows());
    }
  }
  for (size_t i = 0; i < scored_.size(); i++) {
    groups_[scored_[i].group].text_logprobs[static_cast<size_t>(scored_[i].position)] =
        score_logprobs_[i];
  }
  for (size_t i = 0; i < drawn_.size(); i++) {
    Sequence& drawn = sequence(drawn_[i]);
    if (!group_of(drawn).forked) fork(group_of(drawn));
    append_token(drawn, outcomes_[i], kept_ids_[i], report);
  }
  finish_scores(report);
  sweep();
}

// Its prompt is computed: each sample goes on by itself, with the same pages, or waits for a place.
void Engine::Impl::fork(SequenceGroup& group) {
  group.forked = true;
  const Sequence& leader = sequence(group.members.front());
  for (size_t i = 1; i < group.members.size(); i++) {
    Sequence& sample = sequence(group.members[i]);
    sample.tokens.reserve(static_cast<size_t>(group.prompt_size + group.max_new_tokens));
    sample.tokens.assign(leader.tokens.begin(), leader.tokens.end());
    if (static_cast<int32_t>(running_.size()) < limits_.max_running) {
      start(sample);
      pages_.fork(leader.kv, sample.kv);
      sample.computed = leader.computed;
    } else {
      sample.started = true;
      sample.age = next_age_++;
    }
  }
  sort_running();
}

void Engine::Impl::append_token(Sequence& sequence, const SampleOutcome& outcome,
                                std::span<const int32_t> kept, StepReport& report) {
  const SequenceGroup& group = group_of(sequence);
  if (Status status = check_outcome(sequence, outcome, kept); !status.is_ok()) {
    return finish(sequence, FinishReason::error, std::move(status), report);
  }
  record_token(sequence, outcome, kept, report);
  if (!sequence.ends_plainly && is_stopped(sequence, group)) {
    finish(sequence, FinishReason::stop, Status(), report);
  } else if (generated_count(sequence) >= group.max_new_tokens) {
    finish(sequence, FinishReason::length, Status(), report);
  } else {
    if (!sequence.draws_plainly && group.params.masked) want_mask(sequence, group, report);
    if (sequence.place == SequencePlace::unborn) queue_or_park(sequence);
  }
}

Status Engine::Impl::check_outcome(const Sequence& sequence, const SampleOutcome& outcome,
                                   std::span<const int32_t> kept) const {
  if (outcome.token < 0) {
    return Status(Code::device, "a logit at position " + std::to_string(sequence.tokens.size()) +
                                    " is NaN or infinite: the weights of version " +
                                    std::to_string(version_.value) +
                                    ", or edits of the logits, overflow here");
  }
  if (kept.empty()) return {};
  const int64_t most = kept_ids_limit(group_of(sequence).params);
  if (static_cast<int64_t>(sequence.kept_ids.size() + kept.size()) <= most) return {};
  return Status(Code::exhausted, "the kept sets of a sample hold more than " +
                                     std::to_string(most) +
                                     " ids: keep fewer by top_k, top_p or min_p");
}

void Engine::Impl::record_token(Sequence& sequence, const SampleOutcome& outcome,
                                std::span<const int32_t> kept, StepReport& report) {
  const SequenceGroup& group = group_of(sequence);
  const int32_t index = generated_count(sequence);
  if (sequence.versions.empty() || sequence.versions.back().version != version_ ||
      sequence.lost_mixed_kv) {
    const bool is_rebuilt = !sequence.versions.empty() && !sequence.has_mixed_kv;
    sequence.versions.push_back({index, version_, live_digest_, is_rebuilt});
    sequence.lost_mixed_kv = false;
  }
  sequence.tokens.push_back(outcome.token);
  sequence.logprobs.push_back(outcome.logprob);
  sequence.processed_logprobs.push_back(outcome.processed_logprob);
  tokens_generated_++;
  if (!sequence.draws_plainly) sequence.edits.add(outcome.token);
  if (!sequence.draws_plainly && group.params.report.kept_set) {
    sequence.kept_counts.push_back(static_cast<int32_t>(kept.size()));
    sequence.kept_ids.insert(sequence.kept_ids.end(), kept.begin(), kept.end());
  }
  if (!sequence.ends_plainly && group.params.stream) {
    report.progress.push_back({group.request,
                               sequence.sample_index,
                               index,
                               {outcome.token},
                               {outcome.logprob},
                               {outcome.processed_logprob}});
  }
}

// Nothing stops a sample before its forced tokens are all there, nor before min_new_tokens are.
bool Engine::Impl::is_stopped(const Sequence& sequence, const SequenceGroup& group) const {
  const GenerateRequest& params = group.params;
  const int32_t count = generated_count(sequence);
  if (count < params.min_new_tokens || count < static_cast<int32_t>(params.forced_ids.size())) {
    return false;
  }
  const int32_t last = sequence.tokens.back();
  if (std::ranges::find(group.stop_ids, last) != group.stop_ids.end()) return true;
  const auto generated = std::span(sequence.tokens).subspan(static_cast<size_t>(group.prompt_size));
  return std::ranges::any_of(params.stop_sequences, [&](const std::vector<int32_t>& stop) {
    return stop.size() <= generated.size() && std::ranges::equal(generated.last(stop.size()), stop);
  });
}

void Engine::Impl::finish_scores(StepReport& report) {
  for (const PlannedChunk& chunk : plan_.chunks) {
    Sequence& running = sequence(chunk.id);
    if (!running.is_score || running.computed < known_positions(running)) continue;
    const SequenceGroup& group = group_of(running);
    const auto bad = std::ranges::find_if(group.text_logprobs, [](float x) { return x != x; });
    Status error;
    if (bad != group.text_logprobs.end()) {
      error = Status(Code::device, "a logit at position " +
                                       std::to_string(bad - group.text_logprobs.begin()) +
                                       " is NaN or infinite: these weights overflow here");
    }
    finish(running, FinishReason::length, std::move(error), report);
  }
}

}  // namespace exact
