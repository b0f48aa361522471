// update.cc owns the engine's side of a weight update: a staging slot beside the live one, and the
// moment between two steps when they change places.
#include <algorithm>
#include <string>

#include "engine/engine_impl.h"

namespace exact {

Result<WeightSlot*> Engine::Impl::begin_update() {
  if (update_open_ || update_pending_) {
    return Status(Code::exhausted, "an update is under way: wait until it is committed or aborted");
  }
  if (staging_ == nullptr) staging_ = std::make_unique<WeightSlot>(config_, backend_);
  staging_->begin();
  update_open_ = true;
  return staging_.get();
}

Status Engine::Impl::commit_update(WeightVersion version, UpdatePolicy policy) {
  if (!update_open_) return Status(Code::invalid, "no update is open: call begin_update first");
  update_open_ = false;
  if (!staging_->is_complete()) {
    return Status(Code::invalid, "the update is not complete; the live version goes on");
  }
  if (version <= version_) {
    return Status(Code::invalid, "weight version " + std::to_string(version.value) +
                                     " is not above the live version " +
                                     std::to_string(version_.value));
  }
  if (policy > UpdatePolicy::abort) {
    return Status(Code::invalid,
                  "policy is unknown; it must be wait (0), recompute (1) or abort (2)");
  }
  update_pending_ = true;
  is_stalled_ = false;
  pending_version_ = version;
  pending_policy_ = policy;
  return {};
}

// Preempted sequences have begun on the old version too.
bool Engine::Impl::any_started() const {
  for (int32_t slot = 0; slot < sequences_.end(); slot++) {
    if (sequences_.has(slot) && sequences_[slot].started) return true;
  }
  return false;
}

void Engine::Impl::apply_pending_update(StepReport& report) {
  if (!update_pending_) return;
  switch (pending_policy_) {
    case UpdatePolicy::wait:
      if (any_started()) return;
      break;
    case UpdatePolicy::recompute:
      break;
    case UpdatePolicy::abort:
      for (int32_t slot = 0; slot < groups_.end(); slot++) {
        if (!groups_.has(slot)) continue;
        const auto has_started = [&](SequenceId id) {
          return id.value >= 0 && sequence(id).started;
        };
        // A sample that waits for its leader's prompt has begun with it.
        if (std::ranges::none_of(groups_[slot].members, has_started)) continue;
        end_group(groups_[slot], FinishReason::aborted,
                  Status(Code::cancelled, "ended by a weight update with policy abort"), report);
      }
      sweep();
      break;
  }
  forget_all_kv();
  make_live();
  report.committed = version_;
}

// Nothing that the old weights computed is read again: not by those that go on, nor out of the
// prefix index, nor from host memory.
void Engine::Impl::forget_all_kv() {
  for (int32_t slot = 0; slot < sequences_.end(); slot++) {
    if (!sequences_.has(slot)) continue;
    Sequence& sequence = sequences_[slot];
    pages_.release(sequence.kv);
    swap_.release(sequence.swapped);
    sequence.computed = 0;
    // A text is scored by one version, a prompt by that of its samples' first tokens.
    if (sequence.versions.empty()) group_of(sequence).text_rows_done = 0;
  }
  pages_.forget_texts();
}

void Engine::Impl::make_live() {
  std::swap(live_, staging_);
  live_digest_ = live_->digest();
  version_ = pending_version_;
  update_pending_ = false;
}

}  // namespace exact
