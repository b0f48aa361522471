// scheduler.h owns the choice of what one step computes: a pure function from the state of all
// sequences to a plan. It changes nothing and reads no clock; because bits do not depend on the
// schedule, any plan is right, and this one is meant to be fast and fair.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/types.h"

namespace exact {

struct SchedulerLimits {
  int32_t max_step_tokens = 256;
  int32_t max_running = 64;
  int32_t page_size = 64;
};

// One sequence as the scheduler sees it. `computed` positions have their keys and values in the
// cache; `known` tokens exist (prompt and generated). known - computed is 1 while decoding, more
// while prefilling or after a preemption.
struct SequenceState {
  SequenceId id;
  int32_t computed = 0;
  int32_t known = 0;
  int32_t pages_held = 0;
};

struct SchedulerState {
  std::span<const SequenceState> running;  // in order of admission, oldest first
  std::span<const SequenceState> waiting;  // in order of arrival; computed = pages_held = 0
  int32_t free_pages = 0;
  bool admission_closed = false;  // an update waits for running sequences
};

struct PlannedChunk {
  SequenceId id;
  int32_t first_position = 0;
  int32_t row_count = 0;
  friend bool operator==(const PlannedChunk&, const PlannedChunk&) = default;
};

// What the step does, in this order: preempt (pages back, computed = 0, to the front of the queue),
// admit (a prefix of `waiting`), then compute the chunks.
struct StepPlan {
  std::vector<SequenceId> preempt;
  int32_t admit_count = 0;
  std::vector<PlannedChunk> chunks;
};

// Rules, in order: every running sequence goes on before any is admitted, oldest first; decode rows
// (one row) come before prefill rows, but the oldest sequence always keeps a row; prefill is cut to
// what is left of max_step_tokens; when pages run out the youngest running sequence is preempted
// for an older one, and the youngest itself takes what pages are left or waits; a waiting sequence
// is admitted while a place, a row, the pages of its first chunk and a little room for the running
// ones to grow (16 positions each) are free, and never in a step that preempted. A single sequence
// always makes progress if the pool can hold its known tokens. `plan` is overwritten; its vectors
// keep their memory.
void plan_step(const SchedulerState& state, const SchedulerLimits& limits, StepPlan& plan);

}  // namespace exact
