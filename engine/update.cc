// update.cc owns the engine's side of a weight update: the slot that is filled, beside the live one
// or the live one itself, and the moment between two steps when the new weights are live.
#include <algorithm>
#include <string>

#include "engine/engine_impl.h"

namespace exact {

Status Engine::Impl::check_begin(const UpdateOptions& options) const {
  if (failed_) return {Code::device, "the engine stopped after a failed step: start it anew"};
  if (update_open_ || update_pending_) {
    return {Code::exhausted, "an update is under way: wait until it is committed or aborted"};
  }
  if (options.base != WeightVersion{0}) {
    if (health_ != EngineHealth::serving) {
      return {Code::invalid, "there is no live version to change: " + health_reason_};
    }
    if (options.base != version_) {
      return {Code::invalid, "the update changes version " + std::to_string(options.base.value) +
                                 ", but version " + std::to_string(version_.value) +
                                 " is live: send changes to that, or a whole update "
                                 "(base_version 0)"};
    }
  }
  if (health_ == EngineHealth::sleeping) return {};  // no live weights lie in the way
  if (options.in_place && options.policy == UpdatePolicy::keep) {
    return {Code::unsupported,
            "in place no sequence goes on over keys and values of the old version: choose policy "
            "recompute or abort"};
  }
  if (!options.in_place && limits_.weight_slots == 1) {
    return {Code::invalid,
            "there is memory for one set of weights: update in place, or give the worker two"};
  }
  return {};
}

Result<WeightSlot*> Engine::Impl::begin_update(const UpdateOptions& options) {
  EXACT_RETURN_IF_ERROR(check_begin(options));
  if (health_ == EngineHealth::sleeping) {
    EXACT_RETURN_IF_ERROR(take_cache());
  } else if (options.in_place) {
    return begin_in_place(options);
  }
  if (staging_ == nullptr) staging_ = std::make_unique<WeightSlot>(config_, backend_);
  if (options.base == WeightVersion{0}) {
    staging_->begin();
  } else {
    EXACT_RETURN_IF_ERROR(staging_->begin_from(*live_));
  }
  update_open_ = true;
  return staging_.get();
}

// Nothing that runs may be in the middle of the old weights when the first byte is written.
Result<WeightSlot*> Engine::Impl::begin_in_place(const UpdateOptions& options) {
  if (health_ == EngineHealth::serving && options.policy == UpdatePolicy::wait && any_started()) {
    return Status(Code::exhausted,
                  "sequences run on the weights that are to be overwritten: try again when they "
                  "are done, or choose policy recompute or abort");
  }
  if (options.policy == UpdatePolicy::abort) abort_started(early_);
  forget_all_kv();
  if (options.base == WeightVersion{0}) {
    live_->begin();
  } else {
    live_->begin_changes();
  }
  in_place_ = true;
  update_open_ = true;
  is_stalled_ = false;  // what was ended is still to be told
  return live_.get();
}

Status Engine::Impl::check_commit(WeightVersion version, UpdatePolicy policy) const {
  const WeightSlot& slot = in_place_ ? *live_ : *staging_;
  if (!slot.is_complete()) return {Code::invalid, "the update is not complete"};
  if (version <= version_) {
    return {Code::invalid, "weight version " + std::to_string(version.value) +
                               " is not above the live version " + std::to_string(version_.value)};
  }
  if (policy > UpdatePolicy::keep) {
    return {Code::invalid,
            "policy is unknown; it must be wait (0), recompute (1), abort (2) or keep (3)"};
  }
  return {};
}

Status Engine::Impl::commit_update(WeightVersion version, UpdatePolicy policy) {
  if (!update_open_) return {Code::invalid, "no update is open: call begin_update first"};
  if (Status status = check_commit(version, policy); !status.is_ok()) {
    abort_update(status.message());
    return status;
  }
  update_open_ = false;
  update_pending_ = true;
  is_stalled_ = false;
  pending_version_ = version;
  pending_policy_ = policy;
  return {};
}

void Engine::Impl::abort_update(std::string_view why) {
  if (!update_open_) return;
  WeightSlot& slot = open_slot();
  slot.abandon();
  update_open_ = false;
  is_stalled_ = false;
  if (health_ == EngineHealth::sleeping) return drop_staging_and_cache();
  if (!in_place_) return;
  in_place_ = false;
  if (health_ == EngineHealth::serving && !slot.is_written()) return slot.undo_begin();
  health_ = EngineHealth::poisoned;
  health_reason_ = "an update in place of version " + std::to_string(version_.value) +
                   " failed half-way (" + std::string(why) +
                   "): push a whole update (base_version 0)";
}

// Preempted sequences have begun on the old version too.
bool Engine::Impl::any_started() const {
  for (int32_t slot = 0; slot < sequences_.end(); slot++) {
    if (sequences_.has(slot) && sequences_[slot].started) return true;
  }
  return false;
}

void Engine::Impl::abort_started(StepReport& report) {
  for (int32_t slot = 0; slot < groups_.end(); slot++) {
    if (!groups_.has(slot)) continue;
    const auto has_started = [&](SequenceId id) { return id.value >= 0 && sequence(id).started; };
    // A sample that waits for its leader's prompt has begun with it.
    if (std::ranges::none_of(groups_[slot].members, has_started)) continue;
    end_group(groups_[slot], FinishReason::aborted,
              Status(Code::cancelled, "ended by a weight update with policy abort"), report);
  }
  sweep();
}

void Engine::Impl::apply_pending_update(StepReport& report) {
  if (!update_pending_) return;
  // Where the old version is gone already, nobody can finish on it.
  const bool is_old_there = !is_paused();
  if (is_old_there && pending_policy_ == UpdatePolicy::wait && any_started()) return;
  if (pending_policy_ == UpdatePolicy::abort) abort_started(report);
  if (is_old_there && pending_policy_ == UpdatePolicy::keep) {
    keep_kv();
  } else {
    forget_all_kv();
  }
  make_live();
  report.committed = version_;
}

void Engine::Impl::forget_kv(Sequence& sequence) {
  pages_.release(sequence.kv);
  swap_.release(sequence.swapped);
  sequence.computed = 0;
  sequence.lost_mixed_kv |= sequence.has_mixed_kv;
  sequence.has_mixed_kv = false;
}

// Nothing that the old weights computed is read again: not by those that go on, nor out of the
// prefix index, nor from host memory.
void Engine::Impl::forget_all_kv() {
  for (int32_t slot = 0; slot < sequences_.end(); slot++) {
    if (!sequences_.has(slot)) continue;
    Sequence& sequence = sequences_[slot];
    forget_kv(sequence);
    // A text is scored by one version, a prompt by that of its samples' first tokens.
    if (sequence.versions.empty()) group_of(sequence).text_rows_done = 0;
  }
  pages_.forget_texts();
}

// Who draws its next token from one more row goes on over what it has, in the cache or in host
// memory. A prompt, or what is being rebuilt, would be of two versions at a place that no span
// names: it begins anew.
void Engine::Impl::keep_kv() {
  for (int32_t slot = 0; slot < sequences_.end(); slot++) {
    if (!sequences_.has(slot)) continue;
    Sequence& sequence = sequences_[slot];
    if (!sequence.versions.empty() && sequence.computed == known_positions(sequence) - 1) {
      sequence.has_mixed_kv = true;
      continue;
    }
    forget_kv(sequence);
    if (sequence.versions.empty()) group_of(sequence).text_rows_done = 0;
  }
  pages_.forget_texts();
}

void Engine::Impl::make_live() {
  if (!in_place_) std::swap(live_, staging_);
  // What lay there before is gone, or was never all there.
  if (is_paused() && !in_place_) staging_.reset();
  saved_.reset();
  in_place_ = false;
  health_ = EngineHealth::serving;
  health_reason_.clear();
  live_digest_ = live_->digest();
  version_ = pending_version_;
  update_pending_ = false;
}

}  // namespace exact
