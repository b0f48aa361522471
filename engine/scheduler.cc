#include "engine/scheduler.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace exact {
namespace {

// Admitting into the last pages would preempt the newcomer a few steps later, its work lost: each
// running sequence is left room for so many more positions.
constexpr int32_t kHeadroomPositions = 16;

int32_t left_to_compute(const SequenceState& sequence) {
  EXACT_CHECK(sequence.computed < sequence.known, "a sequence with nothing left to compute");
  return sequence.known - sequence.computed;
}

bool is_decoding(const SequenceState& sequence) {
  return left_to_compute(sequence) == 1;
}

// Builds one plan. Sequences are served from the first in rank to the last, and preemption takes
// from the last, so what is preempted is never in the plan already.
class Planner {
 public:
  Planner(const SchedulerState& state, const SchedulerLimits& limits, StepPlan& plan)
      : state_(state),
        limits_(limits),
        plan_(plan),
        kept_(state.running.size()),
        free_pages_(state.free_pages),
        free_swap_pages_(state.free_swap_pages),
        rows_left_(limits.max_step_tokens) {
    plan.preempt.clear();
    plan.admit_count = 0;
    plan.chunks.clear();
    plan.prefill.clear();
    plan.holder_changes.resize(state.page_holders.size());
    for (const SequenceState& sequence : state.running) decodes_to_come_ += decodes(sequence);
  }

  void run() {
    serve_all();
    if (plan_.chunks.empty() && plan_.prefill.empty()) serve_at_the_cost_of_waiters();
    plan_.chunks.insert(plan_.chunks.end(), plan_.prefill.begin(), plan_.prefill.end());
    for (const int32_t page : plan_.changed_pages) plan_.holder_changes[index(page)] = 0;
    plan_.changed_pages.clear();
  }

 private:
  static size_t index(int32_t page) { return static_cast<size_t>(page); }
  static bool decodes(const SequenceState& sequence) {
    return !sequence.waits && is_decoding(sequence);
  }

  void serve_all() {
    bool is_blocked = state_.waiting.empty();
    for (size_t next = 0; next < kept_ || !is_blocked;) {
      if (next < kept_ &&
          (is_blocked || state_.running[next].priority >= next_waiting().priority)) {
        go_on(next++);
      } else {
        is_blocked =
            !admit(next) || static_cast<size_t>(plan_.admit_count) == state_.waiting.size();
      }
    }
  }

  const SequenceState& next_waiting() const {
    return state_.waiting[static_cast<size_t>(plan_.admit_count)];
  }

  // Rows that a sequence may have; those of decoding sequences behind it are kept for them, but the
  // first in rank gets one.
  int32_t rows_for(const SequenceState& sequence, bool is_running) const {
    const bool is_first = plan_.chunks.empty() && plan_.prefill.empty();
    const bool keeps_own = is_running && is_decoding(sequence);
    const int32_t rows =
        keeps_own ? rows_left_ : std::max(rows_left_ - decodes_to_come_, is_first ? 1 : 0);
    return std::min(rows, left_to_compute(sequence));
  }

  void go_on(size_t i) {
    const SequenceState& sequence = state_.running[i];
    if (sequence.waits) return;
    decodes_to_come_ -= is_decoding(sequence);
    const int32_t wanted = rows_for(sequence, true);
    if (wanted <= 0) return;  // it waits, with what it has
    while (kept_ > i + 1 && new_pages(sequence, wanted) > free_pages_) preempt_last();
    // Nobody is left to preempt: it takes what pages there are, or waits for others.
    const int32_t rows = std::min(wanted, reachable_rows(sequence));
    if (rows > 0) add_chunk(sequence, rows);
  }

  // `ahead` running sequences come before it. False: it stays where it is.
  bool admit(size_t ahead) {
    const SequenceState& sequence = next_waiting();
    const int32_t rows = rows_for(sequence, false);
    if (rows <= 0) return false;
    const auto can_preempt = [&] {
      return kept_ > ahead && state_.running[kept_ - 1].priority < sequence.priority;
    };
    while (running_count() >= limits_.max_running && can_preempt()) preempt_last();
    const bool is_first = plan_.chunks.empty() && plan_.prefill.empty();
    const int64_t before = static_cast<int64_t>(ahead) + plan_.admit_count;
    const int64_t headroom = is_first ? 0 : pages_for(before * kHeadroomPositions);
    const auto lacks_pages = [&] {
      return new_pages(sequence, rows) + idle_pages(sequence) + headroom > free_pages_;
    };
    while (lacks_pages() && can_preempt()) preempt_last();
    if (running_count() >= limits_.max_running || lacks_pages() ||
        highest_preempted_ >= sequence.priority) {
      return false;
    }
    take_in(sequence, rows);
    return true;
  }

  void take_in(const SequenceState& sequence, int32_t rows) {
    add_chunk(sequence, rows);
    for (const int32_t page : sequence.pages) change_holders(page, 1);
    plan_.admit_count++;
  }

  // Nothing runs, for want of pages or places that are held by sequences that wait for their
  // clients: they give way to the first that can run.
  void serve_at_the_cost_of_waiters() {
    for (size_t i = 0; i < kept_; i++) {
      if (!state_.running[i].waits) return serve_first(state_.running[i], i, true);
    }
    if (!state_.waiting.empty()) serve_first(state_.waiting.front(), kept_, false);
  }

  void serve_first(const SequenceState& sequence, size_t i, bool is_running) {
    const int32_t wanted = std::min(left_to_compute(sequence), limits_.max_step_tokens);
    const auto fits = [&] {
      return new_pages(sequence, wanted) + idle_pages(sequence) <= free_pages_ &&
             (is_running || running_count() < limits_.max_running);
    };
    // From the last to the first, but not itself. Those behind a running one went already.
    for (size_t other = is_running ? i : kept_; other-- > 0 && !fits();) {
      preempt(state_.running[other]);
      waiters_preempted_++;
    }
    if (!fits()) {
      const int32_t rows = is_running ? std::min(wanted, reachable_rows(sequence)) : 0;
      if (rows > 0) add_chunk(sequence, rows);
      return;
    }
    if (is_running) {
      add_chunk(sequence, wanted);
    } else {
      take_in(sequence, wanted);
    }
  }

  int32_t running_count() const {
    return static_cast<int32_t>(kept_) - waiters_preempted_ + plan_.admit_count;
  }

  int64_t pages_for(int64_t positions) const {
    return (positions + limits_.page_size - 1) / limits_.page_size;
  }

  int32_t holders(int32_t page) const {
    return state_.page_holders[index(page)] + plan_.holder_changes[index(page)];
  }

  void change_holders(int32_t page, int32_t by) {
    const int32_t before = holders(page);
    plan_.holder_changes[index(page)] += by;
    plan_.changed_pages.push_back(page);
    if (before == 0) free_pages_--;
    if (before + by == 0) free_pages_++;
  }

  // Whether the next row of a sequence is written into a page that another holds too.
  bool needs_copy(const SequenceState& sequence) const {
    if (sequence.swapped || sequence.computed % limits_.page_size == 0) return false;
    return holders(sequence.pages[index(sequence.computed / limits_.page_size)]) > 1;
  }

  // Pages that so many rows take beyond those it has or that were found.
  int64_t new_pages(const SequenceState& sequence, int32_t rows) const {
    const int64_t more =
        pages_for(int64_t{sequence.computed} + rows) - static_cast<int64_t>(sequence.pages.size());
    return std::max<int64_t>(more, 0) + needs_copy(sequence);
  }

  // Of the pages found for a waiting sequence, those that nobody holds now.
  int64_t idle_pages(const SequenceState& sequence) const {
    return std::ranges::count_if(sequence.pages, [this](int32_t p) { return holders(p) == 0; });
  }

  // With the pages it has and all free ones. A whole pool of positions may be more than 2^31.
  int32_t reachable_rows(const SequenceState& sequence) const {
    const int64_t copy = needs_copy(sequence);
    if (copy > free_pages_) return 0;
    const int64_t pages = static_cast<int64_t>(sequence.pages.size()) + free_pages_ - copy;
    const int64_t positions = std::min<int64_t>(pages * limits_.page_size, sequence.known);
    return static_cast<int32_t>(positions - sequence.computed);
  }

  void preempt_last() {
    const SequenceState& last = state_.running[--kept_];
    decodes_to_come_ -= decodes(last);
    preempt(last);
  }

  void preempt(const SequenceState& sequence) {
    highest_preempted_ = std::max(highest_preempted_, sequence.priority);
    // What others hold too at its beginning is likely to be found again.
    size_t shared = 0;
    while (shared < sequence.pages.size() && holders(sequence.pages[shared]) > 1) shared++;
    const int64_t rows = sequence.computed - static_cast<int64_t>(shared) * limits_.page_size;
    const auto pages = static_cast<int32_t>(pages_for(sequence.computed));
    const bool swap = pages > 0 && pages <= free_swap_pages_ &&
                      is_swap_cheaper(pages, static_cast<int32_t>(rows), limits_);
    if (swap) free_swap_pages_ -= pages;
    plan_.preempt.push_back({sequence.id, swap});
    for (const int32_t page : sequence.pages) change_holders(page, -1);
  }

  // Keeps decode rows before prefill rows, each in order of rank.
  void add_chunk(const SequenceState& sequence, int32_t rows) {
    free_pages_ -= static_cast<int32_t>(new_pages(sequence, rows));
    if (needs_copy(sequence)) {
      change_holders(sequence.pages[index(sequence.computed / limits_.page_size)], -1);
    }
    rows_left_ -= rows;
    (is_decoding(sequence) ? plan_.chunks : plan_.prefill)
        .push_back({sequence.id, sequence.computed, rows});
  }

  const SchedulerState& state_;
  const SchedulerLimits& limits_;
  StepPlan& plan_;
  size_t kept_;  // running[0, kept_) is not preempted, but for waiters
  int32_t free_pages_, free_swap_pages_;
  int32_t rows_left_;
  int32_t decodes_to_come_ = 0;  // running sequences that were not served yet and have one row
  int32_t waiters_preempted_ = 0;
  int32_t highest_preempted_ = INT32_MIN;  // priority
};

}  // namespace

bool is_swap_cheaper(int32_t pages, int32_t rows, const SchedulerLimits& limits) {
  return 2 * int64_t{pages} * limits.page_bytes <= int64_t{rows} * limits.row_cost_bytes;
}

void plan_step(const SchedulerState& state, const SchedulerLimits& limits, StepPlan& plan) {
  EXACT_CHECK(limits.max_step_tokens > 0 && limits.max_running > 0 && limits.page_size > 0,
              "limits that let nothing run");
  Planner(state, limits, plan).run();
}

}  // namespace exact
