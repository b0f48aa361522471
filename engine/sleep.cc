// sleep.cc owns the time in which the memory of weights and cache is somebody else's.
#include <string>

#include "engine/engine_impl.h"

namespace exact {

Result<uint64_t> Engine::Impl::sleep(bool keep_weights) {
  if (failed_) return Status(Code::device, "the engine stopped after a failed step: start it anew");
  if (health_ == EngineHealth::sleeping) {
    return Status(Code::invalid, "the engine is asleep already: wake it first");
  }
  if (health_ == EngineHealth::poisoned) return Status(Code::invalid, health_reason_);
  if (update_open_ || update_pending_) {
    return Status(Code::exhausted, "an update is under way: sleep when it is live or aborted");
  }
  if (keep_weights) {
    EXACT_ASSIGN(saved_, live_->save());
  }
  forget_all_kv();
  uint64_t freed = cache_.storage.bytes() + live_->release();
  if (staging_ != nullptr) freed += staging_->release();
  staging_.reset();
  cache_.storage.reset();
  health_ = EngineHealth::sleeping;
  health_reason_ = keep_weights ? "the engine is asleep: wake it"
                                : "the engine is asleep, its weights were not kept: push a whole "
                                  "update (base_version 0), which wakes it";
  is_stalled_ = false;
  return freed;
}

Status Engine::Impl::wake() {
  if (health_ == EngineHealth::poisoned) return {Code::invalid, health_reason_};
  if (health_ == EngineHealth::serving) return {};
  if (update_open_ || update_pending_) {
    return {Code::exhausted, "an update is under way: its commit wakes the engine"};
  }
  if (!saved_) return {Code::invalid, health_reason_};
  EXACT_RETURN_IF_ERROR(take_cache());
  const Status restored = live_->restore(*saved_);
  if (!restored.is_ok()) {
    (void)live_->release();
    drop_staging_and_cache();
    if (restored.code() != Code::corrupt) return restored;
    saved_.reset();
    health_reason_ = restored.message() + ": push a whole update (base_version 0), which wakes it";
    return {Code::corrupt, health_reason_};
  }
  saved_.reset();
  health_ = EngineHealth::serving;
  health_reason_.clear();
  is_stalled_ = false;
  return {};
}

Status Engine::Impl::take_cache() {
  EXACT_ASSIGN(cache_, backend_.allocate_kv(geometry_));
  return {};
}

void Engine::Impl::drop_staging_and_cache() {
  staging_.reset();
  cache_.storage.reset();
}

}  // namespace exact
