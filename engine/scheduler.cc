#include "engine/scheduler.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace exact {
namespace {

int32_t left_to_compute(const SequenceState& sequence) {
  EXACT_CHECK(sequence.computed < sequence.known, "a sequence with nothing left to compute");
  return sequence.known - sequence.computed;
}

// Admitting into the last pages would preempt the newcomer a few steps later, its work lost: each
// running sequence is left room for so many more positions.
constexpr int32_t kHeadroomPositions = 16;

bool is_decoding(const SequenceState& sequence) {
  return left_to_compute(sequence) == 1;
}

// Builds one plan. Pages are handed out from the oldest sequence to the youngest, and preemption
// takes from the youngest end, so what is preempted is never in the plan already.
class Planner {
 public:
  Planner(const SchedulerState& state, const SchedulerLimits& limits, StepPlan& plan)
      : state_(state),
        limits_(limits),
        plan_(plan),
        kept_(state.running.size()),
        free_pages_(state.free_pages) {
    plan.preempt.clear();
    plan.admit_count = 0;
    plan.chunks.clear();
    split_rows();
  }

  void go_on_with_running() {
    for (size_t i = 0; i < kept_; i++) {
      const SequenceState& sequence = state_.running[i];
      int32_t& rows_left = is_decoding(sequence) ? decode_rows_left_ : prefill_rows_left_;
      const int32_t wanted = std::min(left_to_compute(sequence), rows_left);
      if (wanted == 0) continue;  // it waits, with what it has
      make_room_for(i, sequence.computed + wanted);
      // Nobody younger is left to preempt: it takes what pages there are, or waits for older ones.
      const int32_t rows = std::min(wanted, reachable(sequence) - sequence.computed);
      if (rows <= 0) continue;
      rows_left -= rows;
      add_chunk(sequence, rows);
    }
  }

  void admit_waiting() {
    if (state_.admission_closed || !plan_.preempt.empty()) return;
    int32_t rows_left = decode_rows_left_ + prefill_rows_left_;
    for (const SequenceState& sequence : state_.waiting) {
      const auto running = static_cast<int32_t>(kept_) + plan_.admit_count;
      const int32_t rows = std::min(left_to_compute(sequence), rows_left);
      if (running >= limits_.max_running || rows == 0) return;
      const int32_t headroom = pages_for(running * kHeadroomPositions);
      if (pages_for(rows) + headroom > free_pages_) return;  // those behind it don't overtake
      rows_left -= rows;
      plan_.admit_count++;
      add_chunk(sequence, rows);
    }
  }

 private:
  // Decode rows come first, but the oldest sequence keeps a row, whatever it does.
  void split_rows() {
    int32_t decoding = 0;
    for (const SequenceState& sequence : state_.running) decoding += is_decoding(sequence);
    const bool oldest_prefills = !state_.running.empty() && !is_decoding(state_.running.front());
    decode_rows_left_ = std::min(decoding, limits_.max_step_tokens - (oldest_prefills ? 1 : 0));
    prefill_rows_left_ = limits_.max_step_tokens - decode_rows_left_;
  }

  int32_t pages_for(int32_t positions) const {
    return (positions + limits_.page_size - 1) / limits_.page_size;
  }

  // Positions that the sequence could hold with the pages it has and all free ones. A whole pool of
  // positions may be more than 2^31.
  int32_t reachable(const SequenceState& sequence) const {
    const int64_t pages = int64_t{sequence.pages_held} + free_pages_;
    return static_cast<int32_t>(std::min<int64_t>(pages * limits_.page_size, sequence.known));
  }

  // Preempts from the youngest until sequence i can hold `positions`, or is the youngest itself.
  void make_room_for(size_t i, int32_t positions) {
    const int32_t needed = pages_for(positions) - state_.running[i].pages_held;
    while (needed > free_pages_ && kept_ > i + 1) {
      const SequenceState& youngest = state_.running[--kept_];
      free_pages_ += youngest.pages_held;
      plan_.preempt.push_back(youngest.id);
    }
  }

  // Keeps decode rows before prefill rows, each in order of age.
  void add_chunk(const SequenceState& sequence, int32_t rows) {
    const int32_t new_pages = pages_for(sequence.computed + rows) - sequence.pages_held;
    free_pages_ -= std::max(new_pages, 0);
    const bool decodes = is_decoding(sequence);
    plan_.chunks.insert(decodes ? plan_.chunks.begin() + decode_chunks_ : plan_.chunks.end(),
                        PlannedChunk{sequence.id, sequence.computed, rows});
    decode_chunks_ += decodes;
  }

  const SchedulerState& state_;
  const SchedulerLimits& limits_;
  StepPlan& plan_;
  size_t kept_;  // running[0, kept_) is not preempted
  int32_t free_pages_;
  int32_t decode_rows_left_ = 0, prefill_rows_left_ = 0;
  int32_t decode_chunks_ = 0;
};

}  // namespace

void plan_step(const SchedulerState& state, const SchedulerLimits& limits, StepPlan& plan) {
  EXACT_CHECK(limits.max_step_tokens > 0 && limits.max_running > 0 && limits.page_size > 0,
              "limits that let nothing run");
  Planner planner(state, limits, plan);
  planner.go_on_with_running();
  planner.admit_waiting();
}

}  // namespace exact
