// step.cc owns the order of one step of the engine, and its plan: who runs, with which pages.
// Before the outcomes are applied nothing has changed but who runs and where pages are.
#include <algorithm>
#include <string>

#include "engine/engine_impl.h"

namespace exact {

Result<StepReport> Engine::Impl::step() {
  if (failed_) return Status(Code::device, "the engine stopped after a failed step: start it anew");
  StepReport report = std::move(early_);
  early_ = {};
  apply_pending_update(report);
  if (is_paused()) {
    is_stalled_ = true;
    return report;
  }
  plan();
  is_stalled_ = plan_.chunks.empty();
  if (is_stalled_) return report;
  move_sequences(report);
  gather_inputs(report);
  run();
  if (Status status = backend_.finish(); !status.is_ok()) {
    failed_ = true;
    return status;
  }
  apply_outcomes(report);
  steps_++;
#ifdef EXACT_CHECK_INTEGRITY
  const Status integrity = check_integrity();
  EXACT_CHECK(integrity.is_ok(), integrity.message().c_str());
#endif
  return report;
}

void Engine::Impl::plan() {
  list_running();
  list_waiting();
  plan_step(
      {running_states_, waiting_states_, pages_.holders(), pages_.available(), swap_.free_count()},
      scheduler_limits_, plan_);
  const bool all_wait =
      std::ranges::all_of(running_states_, [](const SequenceState& state) { return state.waits; });
  EXACT_CHECK(!plan_.chunks.empty() || (all_wait && waiting_states_.empty()),
              "a plan without progress");
}

void Engine::Impl::list_running() {
  running_states_.clear();
  for (const SequenceId id : running_) {
    const Sequence& running = sequence(id);
    SequenceState& state = running_states_.emplace_back();
    state.id = id;
    state.computed = running.computed;
    state.known = known_positions(running);
    state.priority = running.priority;
    state.waits = running.wants_mask;
    state.pages = running.kv.pages;
  }
}

// As many as could be admitted, no more: looking for their texts in the cache takes time.
void Engine::Impl::list_waiting() {
  waiting_states_.clear();
  const auto places = static_cast<size_t>(limits_.max_running) - running_.size();
  const bool all_wait =
      std::ranges::all_of(running_states_, [](const SequenceState& state) { return state.waits; });
  int64_t rows = 0;
  for (const WaitingQueue::Place& place : waiting_.places()) {
    const size_t count = waiting_states_.size();
    const bool can_preempt =
        !running_.empty() && running_states_.back().priority < -place.falling_priority;
    const bool can_enter = count < places || can_preempt || (all_wait && count == 0);
    if (!can_enter || rows >= limits_.max_step_tokens ||
        count >= static_cast<size_t>(limits_.max_running)) {
      break;
    }
    const Sequence& waiting = sequence(place.sequence);
    if (admits_started_only() && !waiting.started) continue;
    const SequenceGroup& group = group_of(waiting);
    if (found_pages_.size() <= count) found_pages_.emplace_back();
    std::vector<int32_t>& found = found_pages_[count];
    found.clear();
    SequenceState& state = waiting_states_.emplace_back();
    state.id = waiting.id;
    state.known = known_positions(waiting);
    state.priority = waiting.priority;
    state.swapped = !waiting.swapped.empty();
    if (!state.swapped) {
      pages_.find(
          std::span(waiting.tokens).first(static_cast<size_t>(reusable_positions(waiting, group))),
          found);
    }
    state.computed =
        state.swapped ? waiting.computed : static_cast<int32_t>(found.size()) * pages_.page_size();
    state.pages = found;
    rows += state.known - state.computed;
  }
}

void Engine::Impl::move_sequences(StepReport& report) {
  for (const Preemption& preemption : plan_.preempt) preempt(preemption, report);
  if (!plan_.preempt.empty()) {
    std::erase_if(running_,
                  [this](SequenceId id) { return sequence(id).place != SequencePlace::running; });
  }
  // Pages that were found get their holder before anybody takes one.
  for (int32_t i = 0; i < plan_.admit_count; i++) admit(static_cast<size_t>(i), report);
  for (int32_t i = 0; i < plan_.admit_count; i++) {
    Sequence& admitted = sequence(waiting_states_[static_cast<size_t>(i)].id);
    if (admitted.swapped.empty()) continue;
    swap_in(admitted);
    report.swapped_in++;
  }
  if (plan_.admit_count > 0) sort_running();
  give_pages();
}

void Engine::Impl::preempt(const Preemption& preemption, StepReport& report) {
  Sequence& preempted = sequence(preemption.id);
  if (preemption.swap) {
    swap_out(preempted);
    report.swapped_out++;
    pages_.release(preempted.kv);
  } else {
    forget_kv(preempted);
    report.preempted++;
  }
  queue_or_park(preempted);
}

void Engine::Impl::admit(size_t candidate, StepReport& report) {
  const SequenceState& state = waiting_states_[candidate];
  Sequence& admitted = sequence(state.id);
  waiting_.admitted(admitted.queue);
  start(admitted);
  if (state.swapped) return;
  pages_.adopt(state.pages, admitted.kv);
  admitted.computed = state.computed;
  report.reused_rows += state.computed;
}

// Takes the memory that it needs for its whole life, so that no later step does.
void Engine::Impl::start(Sequence& sequence) {
  sequence.place = SequencePlace::running;
  running_.push_back(sequence.id);
  if (!sequence.started) {
    sequence.started = true;
    sequence.age = next_age_++;
  }
  const SequenceGroup& group = group_of(sequence);
  const auto most = static_cast<size_t>(group.max_new_tokens);
  const int32_t positions = group.prompt_size + group.max_new_tokens;
  sequence.tokens.reserve(static_cast<size_t>(positions));
  sequence.kv.pages.reserve(static_cast<size_t>(pages_.pages_for(positions)));
  sequence.logprobs.reserve(most);
  sequence.processed_logprobs.reserve(most);
  const ReportParams& report = group.params.report;
  if (report.entropy) sequence.entropies.reserve(most);
  if (report.kept_set) sequence.kept_counts.reserve(most);
  sequence.top_ids.reserve(most * static_cast<size_t>(report.top_logprobs));
  sequence.top_logprobs.reserve(most * static_cast<size_t>(report.top_logprobs));
}

void Engine::Impl::sort_running() {
  const auto is_before = [this](SequenceId a, SequenceId b) {
    const Sequence &first = sequence(a), &second = sequence(b);
    return first.priority != second.priority ? first.priority > second.priority
                                             : first.age < second.age;
  };
  if (!std::ranges::is_sorted(running_, is_before)) std::ranges::sort(running_, is_before);
}

// The backend does as it is told in order: pages go out before others write them.
void Engine::Impl::swap_out(Sequence& sequence) {
  const int32_t count = pages_.pages_for(sequence.computed);
  swap_.take(count, sequence.swapped);
  for (size_t i = 0; i < static_cast<size_t>(count); i++) {
    backend_.save_pages(cache_, std::span(sequence.kv.pages).subspan(i, 1),
                        swap_.slot(sequence.swapped[i]));
  }
}

void Engine::Impl::swap_in(Sequence& sequence) {
  pages_.grow(sequence.kv, sequence.computed);
  for (size_t i = 0; i < sequence.swapped.size(); i++) {
    backend_.load_pages(cache_, std::span(sequence.kv.pages).subspan(i, 1),
                        swap_.slot(sequence.swapped[i]));
  }
  swap_.release(sequence.swapped);
}

void Engine::Impl::give_pages() {
  copies_from_.clear(), copies_to_.clear();
  for (const PlannedChunk& chunk : plan_.chunks) {
    Sequence& planned = sequence(chunk.id);
    const bool mid_page = chunk.first_position % pages_.page_size() != 0;
    if (mid_page && pages_.is_shared(planned.kv, chunk.first_position)) {
      const PageCopy copy = pages_.unshare(planned.kv, chunk.first_position);
      copies_from_.push_back(copy.from);
      copies_to_.push_back(copy.to);
    }
    pages_.grow(planned.kv, chunk.first_position + chunk.row_count);
  }
  if (copies_to_.empty()) return;
  backend_.copy_pages(cache_, copies_from_, copies_to_);
  pages_copied_ += copies_to_.size();
}

Status Engine::Impl::check_integrity() const {
  std::vector<const PageList*> lists;
  std::vector<const std::vector<int32_t>*> swapped;
  size_t running = 0;
  for (int32_t slot = 0; slot < sequences_.end(); slot++) {
    if (!sequences_.has(slot)) continue;
    const Sequence& sequence = sequences_[slot];
    lists.push_back(&sequence.kv);
    swapped.push_back(&sequence.swapped);
    running += sequence.place == SequencePlace::running;
    const bool runs = sequence.place == SequencePlace::running;
    const int32_t pages = runs ? pages_.pages_for(sequence.computed) : 0;
    const auto held = static_cast<int32_t>(sequence.kv.pages.size());
    const auto out = static_cast<int32_t>(sequence.swapped.size());
    const bool is_queued =
        sequence.place == SequencePlace::queued && waiting_.places().contains(sequence.queue);
    if (held != pages || (out > 0 && (runs || out != pages_.pages_for(sequence.computed))) ||
        (sequence.place == SequencePlace::queued) != is_queued) {
      return Status(Code::corrupt, "sequence " + std::to_string(slot) + " holds " +
                                       std::to_string(held) + " pages and " + std::to_string(out) +
                                       " swap slots for " + std::to_string(sequence.computed) +
                                       " positions");
    }
  }
  if (running != running_.size()) return Status(Code::corrupt, "the batch is miscounted");
  EXACT_RETURN_IF_ERROR(swap_.check_integrity(swapped));
  return pages_.check_integrity(lists);
}

}  // namespace exact
