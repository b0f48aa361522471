// requests.cc owns the way of a request in and out: submit, allow, cancel, and the end of a
// sequence.
#include <algorithm>
#include <string>

#include "engine/engine_impl.h"
#include "engine/sampling.h"

namespace exact {
namespace {

// Whether no token of its samples will ever need more than a SampleRow.
bool draws_plainly(const GenerateRequest& request) {
  const SamplingParams& sampling = request.sampling;
  const ReportParams& report = request.report;
  return sampling.repetition_penalty == 1.0f && sampling.presence_penalty == 0.0f &&
         sampling.frequency_penalty == 0.0f && sampling.logit_bias.empty() &&
         sampling.allowed_ids.empty() && sampling.banned_ids.empty() &&
         request.min_new_tokens == 0 && request.forced_ids.empty() && !request.masked &&
         report.top_logprobs == 0 && !report.entropy && !report.kept_set;
}

}  // namespace

Status Engine::Impl::check_capacity(RequestId request, int32_t sequences) const {
  if (failed_) return Status(Code::device, "the engine stopped after a failed step: start it anew");
  const int32_t waiting = sequences_.count() - static_cast<int32_t>(running_.size());
  if (waiting + sequences > limits_.max_waiting) {
    return Status(Code::exhausted, "the queue holds " + std::to_string(waiting) + " of " +
                                       std::to_string(limits_.max_waiting) +
                                       " sequences: try again when some are done");
  }
  if (open_groups_.contains(request)) {
    return Status(Code::invalid, "request id " + std::to_string(request.value) +
                                     " is in flight already: choose another");
  }
  return {};
}

SequenceGroup& Engine::Impl::add_group(RequestId request, int32_t members) {
  const int32_t slot = groups_.add();
  SequenceGroup& group = groups_[slot];
  group.request = request;
  group.open_count = members;
  for (int32_t i = 0; i < members; i++) {
    const SequenceId id{sequences_.add()};
    sequence(id).id = id;
    sequence(id).group = slot;
    sequence(id).sample_index = i;
    group.members.push_back(id);
  }
  open_groups_.emplace(request, slot);
  is_stalled_ = false;
  return group;
}

Status Engine::Impl::submit(GenerateRequest request) {
  EXACT_RETURN_IF_ERROR(validate(request, config_, limits_));
  EXACT_RETURN_IF_ERROR(check_capacity(request.id, request.n));
  std::vector<int32_t> stop_ids = request.stop_ids;
  if (!request.ignore_eos) {
    stop_ids.insert(stop_ids.end(), config_.eos_ids.begin(), config_.eos_ids.end());
  }
  EXACT_RETURN_IF_ERROR(check_tokens_left(request, stop_ids, config_.vocabulary));
  SequenceGroup& group = add_group(request.id, request.n);
  group.max_new_tokens = effective_max_new_tokens(request, limits_);
  group.prompt_size = static_cast<int32_t>(request.prompt.size());
  group.forked = request.n == 1;
  if (request.report.prompt_logprobs) group.text_logprobs.assign(request.prompt.size() - 1, 0.0f);
  for (const SequenceId id : group.members) {
    Sequence& sample = sequence(id);
    sample.priority = request.priority;
    sample.prompt_size = group.prompt_size;
    sample.draw = sample_row(
        request.sampling, static_cast<uint32_t>(request.first_sample + sample.sample_index), 0, 0);
    sample.edits = LogitEdits(request, stop_ids, config_.vocabulary, group.max_new_tokens);
    sample.draws_plainly = draws_plainly(request);
    sample.ends_plainly = stop_ids.empty() && request.stop_sequences.empty() && !request.stream;
    sample.scores_text = request.report.prompt_logprobs;
  }
  group.stop_ids = std::move(stop_ids);
  Sequence& leader = sequence(group.members.front());
  leader.tokens = std::move(request.prompt);
  group.params = std::move(request);
  for (const SequenceId id : group.members) {
    if (group.params.masked) want_mask(sequence(id), group, early_);
  }
  if (group.params.masked && !group.forked) group.masks_missing = group.params.n;
  queue_or_park(leader);
  return {};
}

Status Engine::Impl::submit(ScoreRequest request) {
  EXACT_RETURN_IF_ERROR(validate(request, config_, limits_));
  EXACT_RETURN_IF_ERROR(check_capacity(request.id, 1));
  SequenceGroup& group = add_group(request.id, 1);
  group.is_score = true;
  group.forked = true;
  group.params.priority = request.priority;
  group.params.client = request.client;
  group.prompt_size = static_cast<int32_t>(request.tokens.size());
  group.text_logprobs.assign(request.tokens.size() - 1, 0.0f);
  Sequence& only = sequence(group.members.front());
  only.is_score = true;
  only.scores_text = true;
  only.priority = request.priority;
  only.prompt_size = group.prompt_size;
  only.tokens = std::move(request.tokens);
  queue_or_park(only);
  return {};
}

void Engine::Impl::want_mask(Sequence& sequence, const SequenceGroup& group, StepReport& report) {
  sequence.wants_mask = true;
  const int32_t index = sequence.tokens.empty() ? 0 : generated_count(sequence);
  report.masks_wanted.push_back(
      {group.request, sequence.sample_index, index, index == 0 ? -1 : sequence.tokens.back()});
}

Status Engine::Impl::allow(RequestId request, int32_t sample_index, int32_t index,
                           std::span<const int32_t> ids) {
  const auto open = open_groups_.find(request);
  const auto not_waiting = [&] {
    return Status(Code::not_found, "sample " + std::to_string(sample_index) + " of request " +
                                       std::to_string(request.value) +
                                       " does not wait for the ids of token " +
                                       std::to_string(index));
  };
  if (open == open_groups_.end()) return not_waiting();
  SequenceGroup& group = groups_[open->second];
  if (sample_index < 0 || sample_index >= static_cast<int32_t>(group.members.size())) {
    return not_waiting();
  }
  const SequenceId id = group.members[static_cast<size_t>(sample_index)];
  if (id.value < 0 || !sequence(id).wants_mask) return not_waiting();
  Sequence& asking = sequence(id);
  const int32_t wanted = group.forked ? generated_count(asking) : 0;
  if (index != wanted) return not_waiting();
  EXACT_RETURN_IF_ERROR(asking.edits.allow(ids));
  asking.wants_mask = false;
  if (!group.forked) group.masks_missing--;
  is_stalled_ = false;
  Sequence& runner = group.forked ? asking : sequence(group.members.front());
  if (runner.place == SequencePlace::parked) queue_or_park(runner);
  return {};
}

bool Engine::Impl::waits_for_client(const Sequence& sequence) const {
  return sequence.wants_mask || group_of(sequence).masks_missing > 0;
}

void Engine::Impl::queue_or_park(Sequence& sequence) {
  const SequenceGroup& group = group_of(sequence);
  if (waits_for_client(sequence)) {
    sequence.place = SequencePlace::parked;
    return;
  }
  sequence.place = SequencePlace::queued;
  sequence.queue = sequence.started
                       ? waiting_.add_again(sequence.id, group.params.priority, sequence.age)
                       : waiting_.add_new(sequence.id, group.params.priority, group.params.client,
                                          group.params.n);
}

Status Engine::Impl::cancel(RequestId request, FinishReason reason) {
  const auto open = open_groups_.find(request);
  if (open == open_groups_.end()) {
    return Status(Code::not_found,
                  "request " + std::to_string(request.value) + " is not in flight");
  }
  std::erase_if(early_.masks_wanted,
                [&](const MaskWanted& mask) { return mask.request == request; });
  end_group(groups_[open->second], reason, Status(), early_);
  sweep();
  is_stalled_ = false;
  return {};
}

void Engine::Impl::end_group(SequenceGroup& group, FinishReason reason, const Status& error,
                             StepReport& report) {
  for (size_t i = 0; i < group.members.size(); i++) {
    const SequenceId id = group.members[i];
    if (id.value >= 0) finish(sequence(id), reason, error, report);
  }
}

bool Engine::Impl::has_work() const {
  return !sequences_.empty() || !early_.samples.empty() || !early_.scores.empty() ||
         update_pending_;
}

// What the backend wrote beside each token; less what stands for a draw that failed.
void Engine::Impl::take_reports(Sequence& sequence, const SequenceGroup& group,
                                SampleResult& result) {
  const size_t tokens = result.tokens.size();
  const ReportParams& report = group.params.report;
  result.entropies = std::move(sequence.entropies);
  result.entropies.resize(report.entropy ? tokens : 0);
  result.top_ids = std::move(sequence.top_ids);
  result.top_ids.resize(tokens * static_cast<size_t>(report.top_logprobs));
  result.top_logprobs = std::move(sequence.top_logprobs);
  result.top_logprobs.resize(result.top_ids.size());
  result.kept_counts = std::move(sequence.kept_counts);
  result.kept_ids = std::move(sequence.kept_ids);
}

void Engine::Impl::finish(Sequence& sequence, FinishReason reason, Status error,
                          StepReport& report) {
  SequenceGroup& group = group_of(sequence);
  if (group.is_score) {
    if (reason == FinishReason::cancelled)
      error = Status(Code::cancelled, "cancelled by the client");
    if (reason == FinishReason::deadline)
      error = Status(Code::timeout, "its deadline passed before it was done");
    report.scores.push_back(
        {group.request, std::move(error), std::move(group.text_logprobs), version_, live_digest_});
  } else {
    SampleResult result;
    result.request = group.request;
    result.sample_index = sequence.sample_index;
    result.reason = reason;
    result.error = std::move(error);
    if (!sequence.tokens.empty()) {
      result.tokens.assign(sequence.tokens.begin() + group.prompt_size, sequence.tokens.end());
    }
    result.logprobs = std::move(sequence.logprobs);
    result.processed_logprobs = std::move(sequence.processed_logprobs);
    result.versions = std::move(sequence.versions);
    take_reports(sequence, group, result);
    if (group.text_rows_done == group.text_rows()) result.prompt_logprobs = group.text_logprobs;
    report.samples.push_back(std::move(result));
  }
  if (sequence.place == SequencePlace::queued) waiting_.remove(sequence.queue);
  pages_.release(sequence.kv);
  swap_.release(sequence.swapped);
  sequence.place = SequencePlace::ended;
  group.members[static_cast<size_t>(sequence.sample_index)] = SequenceId{-1};
  group.open_count--;
  ended_.push_back(sequence.id);
}

void Engine::Impl::sweep() {
  if (ended_.empty()) return;
  std::erase_if(running_,
                [this](SequenceId id) { return sequence(id).place != SequencePlace::running; });
  for (const SequenceId id : ended_) {
    const int32_t slot = sequence(id).group;
    sequences_.remove(id.value);
    if (!groups_.has(slot) || groups_[slot].open_count > 0) continue;
    open_groups_.erase(groups_[slot].request);
    groups_.remove(slot);
  }
  ended_.clear();
}

}  // namespace exact
