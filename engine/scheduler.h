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
  // What swapping is weighed by: bytes of a page, and bytes that move to host memory in the time
  // that a row takes to compute.
  int64_t page_bytes = 1;
  int64_t row_cost_bytes = 0;
};

// One sequence as the scheduler sees it. `computed` positions have their keys and values in
// `pages`; `known` tokens exist (prompt and generated). known - computed is 1 while decoding, more
// while prefilling or after a preemption.
struct SequenceState {
  SequenceId id;
  int32_t computed = 0;
  int32_t known = 0;
  int32_t priority = 0;
  bool waits = false;    // for its client: it runs no rows
  bool swapped = false;  // not running: `computed` positions are in host memory, `pages` is empty
  std::span<const int32_t> pages;  // not running: whole pages of its text, found in the cache
};

struct SchedulerState {
  std::span<const SequenceState> running;  // highest priority first, then oldest first
  std::span<const SequenceState> waiting;  // highest priority first, then in order of admission
  std::span<const int32_t> page_holders;   // of each page; 0: its content is kept while not needed
  int32_t free_pages = 0;                  // pages without a holder
  int32_t free_swap_pages = 0;
};

struct PlannedChunk {
  SequenceId id;
  int32_t first_position = 0;
  int32_t row_count = 0;
  friend bool operator==(const PlannedChunk&, const PlannedChunk&) = default;
};

struct Preemption {
  SequenceId id;
  bool swap = false;  // its pages go to host memory; else computed = 0
  friend bool operator==(const Preemption&, const Preemption&) = default;
};

// What the step does, in this order: preempt, admit (a prefix of `waiting`, with the pages found or
// loaded), copy shared pages that are written, then compute the chunks.
struct StepPlan {
  std::vector<Preemption> preempt;
  int32_t admit_count = 0;
  std::vector<PlannedChunk> chunks;

  // Memory for plan_step alone.
  std::vector<PlannedChunk> prefill;
  std::vector<int32_t> holder_changes;  // of each page; zeros between two plans
  std::vector<int32_t> changed_pages;
};

// Rules, in order:
// - Sequences are served by rank: higher priority first; of one priority, those that run, oldest
//   first, then those that wait. Who waits is not overtaken by those behind it.
// - Decode rows (one row) come before prefill rows, but the first in rank always gets a row;
// prefill
//   is cut to what is left of max_step_tokens.
// - When pages run out the last in rank that runs is preempted for one before it; the last itself
//   takes what pages are left or stays as it is.
// - Who waits is admitted while a place, a row, the pages of its first chunk and a little room for
//   those that run before it to grow (16 positions each) are free, and never in a step that
//   preempted its equal. For a place or pages it preempts those of lower priority.
// - A sequence that waits for its client keeps its place and pages, unless nothing else could run.
// So whenever a sequence is there that does not wait for its client, the first of them in rank
// computes a row at least (progress), if the pool can hold its known tokens.
// `plan` is overwritten; its vectors keep their memory.
void plan_step(const SchedulerState& state, const SchedulerLimits& limits, StepPlan& plan);

// The cost rule: whether moving `pages` out and in again takes no longer than computing `rows`.
bool is_swap_cheaper(int32_t pages, int32_t rows, const SchedulerLimits& limits);

}  // namespace exact
