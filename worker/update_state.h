// update_state.h owns the states of a weight update and what leads from one to the next: a pure
// table. What it has no entry for, a client can't do.
//
//   idle --begin--> receiving --bucket--> receiving --all_verified--> verified --commit-->
//   committing --live--> idle;  receiving, verified --abort, failure--> idle
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace exact::worker {

enum class UpdateState : uint8_t { idle, receiving, verified, committing };
inline constexpr UpdateState kUpdateStates[] = {UpdateState::idle, UpdateState::receiving,
                                                UpdateState::verified, UpdateState::committing};

enum class UpdateEvent : uint8_t {
  begin,         // UpdateBegin
  bucket,        // UpdateBucket
  all_verified,  // the last bucket is copied and every digest is right
  commit,        // UpdateCommit
  live,          // the engine has changed the weights
  abort,         // UpdateAbort
  failure,       // a wrong message or byte, silence, or the sender is gone
};
inline constexpr UpdateEvent kUpdateEvents[] = {
    UpdateEvent::begin, UpdateEvent::bucket, UpdateEvent::all_verified, UpdateEvent::commit,
    UpdateEvent::live,  UpdateEvent::abort,  UpdateEvent::failure};

// nullopt: not allowed.
constexpr std::optional<UpdateState> next_state(UpdateState state, UpdateEvent event) {
  const bool is_open = state == UpdateState::receiving || state == UpdateState::verified;
  switch (event) {
    case UpdateEvent::begin:
      if (state == UpdateState::idle) return UpdateState::receiving;
      break;
    case UpdateEvent::bucket:
      if (state == UpdateState::receiving) return UpdateState::receiving;
      break;
    case UpdateEvent::all_verified:
      if (state == UpdateState::receiving) return UpdateState::verified;
      break;
    case UpdateEvent::commit:
      if (state == UpdateState::verified) return UpdateState::committing;
      break;
    case UpdateEvent::live:
      if (state == UpdateState::committing) return UpdateState::idle;
      break;
    case UpdateEvent::abort:
    case UpdateEvent::failure:
      if (is_open) return UpdateState::idle;
      break;
  }
  return std::nullopt;
}

constexpr std::string_view update_state_name(UpdateState state) {
  switch (state) {
    case UpdateState::idle:
      return "idle";
    case UpdateState::receiving:
      return "receiving";
    case UpdateState::verified:
      return "verified";
    case UpdateState::committing:
      return "committing";
  }
  return "unknown";
}

}  // namespace exact::worker
