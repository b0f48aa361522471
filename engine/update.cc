// update.cc owns the engine's side of a weight update: a staging slot beside the live one, and the
// moment between two steps when they change places.
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
  pending_version_ = version;
  pending_policy_ = policy;
  return {};
}

void Engine::Impl::apply_pending_update(StepReport& report) {
  if (!update_pending_) return;
  switch (pending_policy_) {
    case UpdatePolicy::wait: {
      // Preempted sequences have begun on the old version and finish on it too.
      const bool begun_waits = !waiting_.empty() && waiting_.front()->started;
      if (!running_.empty() || begun_waits) return;
      break;
    }
    case UpdatePolicy::recompute:
      for (Sequence* sequence : running_) {
        pages_.release(sequence->id);
        sequence->forget_kv();
      }
      break;
    case UpdatePolicy::abort:
      while (!waiting_.empty() && waiting_.front()->started) {
        finish(*waiting_.front(), FinishReason::aborted,
               Status(Code::cancelled, "ended by a weight update with policy abort"), report);
      }
      while (!running_.empty()) {
        finish(*running_.front(), FinishReason::aborted,
               Status(Code::cancelled, "ended by a weight update with policy abort"), report);
      }
      break;
  }
  make_live();
  report.committed = version_;
}

void Engine::Impl::make_live() {
  std::swap(live_, staging_);
  live_digest_ = live_->digest();
  version_ = pending_version_;
  update_pending_ = false;
}

}  // namespace exact
