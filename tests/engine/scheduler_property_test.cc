// What holds of every plan, over random states with shared, found and swapped pages: it fits, it
// takes from the last in rank alone, and the first that can run does. That plans lead somewhere is
// engine_simulation_test.cc's.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "engine/scheduler.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

constexpr int32_t kPage = 16;

class RandomState {
 public:
  explicit RandomState(RandomData& random) : random_(random) {
    limits.max_step_tokens = between(1, one_in(2) ? 8 : 100);
    limits.max_running = between(1, 12);
    limits.page_size = kPage;
    limits.page_bytes = 100;
    limits.row_cost_bytes = between(0, 30);
    const int32_t count = between(0, limits.max_running);
    for (int32_t i = 0; i < count; i++) add_running();
    const auto by_priority = [](const SequenceState& a, const SequenceState& b) {
      return a.priority > b.priority;
    };
    std::ranges::stable_sort(running, by_priority);
    for (int32_t i = between(0, 5); i > 0; i--) add_waiting();
    std::ranges::stable_sort(waiting, by_priority);
    free_pages = idle_ + between(0, one_in(2) ? 1 : 8);
    // One sequence fits into the pool, whoever it is.
    int32_t held = 0, most = 0;
    for (const int32_t h : holders) held += h > 0;
    for (const auto* list : {&running, &waiting}) {
      for (const SequenceState& s : *list) most = std::max(most, (s.known + kPage - 1) / kPage);
    }
    free_pages = std::max(free_pages, most - held);
    free_swap_pages = between(0, 10);
  }

  SchedulerState view() const { return {running, waiting, holders, free_pages, free_swap_pages}; }

  SchedulerLimits limits;
  std::vector<SequenceState> running, waiting;
  std::vector<int32_t> holders;
  int32_t free_pages = 0, free_swap_pages = 0;

 private:
  int32_t between(int64_t low, int64_t high) {
    return static_cast<int32_t>(random_.between(low, high));
  }
  bool one_in(int64_t count) { return random_.between(1, count) == 1; }

  int32_t new_page(int32_t held_by) {
    holders.push_back(held_by);
    return static_cast<int32_t>(holders.size()) - 1;
  }

  SequenceState& add(std::vector<SequenceState>& where) {
    SequenceState& state = where.emplace_back();
    state.id = SequenceId{next_id_++};
    state.priority = one_in(3) ? between(-1, 1) : 0;
    return state;
  }

  void add_running() {
    SequenceState& state = add(running);
    state.waits = one_in(4);
    std::vector<int32_t>& pages = lists_.emplace_back();
    const bool forks = one_in(3) && running.size() > 1 && running[0].computed > 0;
    if (forks) {  // all of its pages are another's too
      state.computed = running[0].computed;
      pages.assign(running[0].pages.begin(), running[0].pages.end());
      for (const int32_t page : pages) holders[static_cast<size_t>(page)]++;
    } else {
      state.computed = between(0, 60);
      while (static_cast<int32_t>(pages.size()) * kPage < state.computed) {
        pages.push_back(new_page(1));
      }
    }
    state.known = state.computed + (one_in(2) ? 1 : between(1, 60));
    state.pages = pages;
  }

  void add_waiting() {
    SequenceState& state = add(waiting);
    std::vector<int32_t>& pages = lists_.emplace_back();
    if (one_in(4)) {
      state.swapped = true;
      state.computed = between(1, 60);
    } else if (one_in(2)) {
      for (int32_t i = between(0, 3); i > 0; i--) {
        pages.push_back(new_page(0));
        idle_++;
      }
      state.computed = static_cast<int32_t>(pages.size()) * kPage;
    }
    state.known = state.computed + (one_in(2) ? 1 : between(1, 60));
    state.pages = pages;
  }

  RandomData& random_;
  std::deque<std::vector<int32_t>> lists_;
  int32_t next_id_ = 0, idle_ = 0;
};

// Carries a plan out, page by page.
class Check {
 public:
  Check(const RandomState& state, const StepPlan& plan) : state_(state), plan_(plan) {}

  void all() {
    check_preemption();
    check_pages();
    check_rows();
    check_progress();
  }

 private:
  static bool preempts(const StepPlan& plan, SequenceId id) {
    return std::ranges::count(plan.preempt, id, &Preemption::id) > 0;
  }
  const PlannedChunk* chunk_of(SequenceId id) const {
    const auto found = std::ranges::find(plan_.chunks, id, &PlannedChunk::id);
    return found == plan_.chunks.end() ? nullptr : &*found;
  }
  std::span<const SequenceState> admitted() const {
    return std::span(state_.waiting).first(static_cast<size_t>(plan_.admit_count));
  }

  void check_preemption() {
    int32_t swap_pages = 0;
    for (const Preemption& preemption : plan_.preempt) {
      const auto victim = std::ranges::find(state_.running, preemption.id, &SequenceState::id);
      ASSERT_NE(victim, state_.running.end());
      ASSERT_EQ(chunk_of(preemption.id), nullptr) << "preempted, and planned";
      if (preemption.swap) swap_pages += (victim->computed + kPage - 1) / kPage;
      // Everyone behind it goes too, but where those that wait for clients give way.
      for (auto behind = victim + 1; behind != state_.running.end() && !victim->waits; behind++) {
        ASSERT_TRUE(preempts(plan_, behind->id)) << "not the last in rank";
      }
      for (const SequenceState& newcomer : admitted()) {
        ASSERT_TRUE(newcomer.priority > victim->priority || victim->waits)
            << "admitted in a step that preempted its equal";
      }
    }
    ASSERT_LE(swap_pages, state_.free_swap_pages);
  }

  void check_pages() {
    std::map<int32_t, int32_t> holders;
    for (size_t page = 0; page < state_.holders.size(); page++) {
      holders[static_cast<int32_t>(page)] = state_.holders[page];
    }
    int32_t free = state_.free_pages;
    for (const SequenceState& running : state_.running) {
      if (!preempts(plan_, running.id)) continue;
      for (const int32_t page : running.pages) free += --holders[page] == 0;
    }
    for (const SequenceState& waiting : admitted()) {
      for (const int32_t page : waiting.pages) free -= holders[page]++ == 0;
    }
    const auto take = [&](const SequenceState& sequence) {
      const PlannedChunk* chunk = chunk_of(sequence.id);
      if (chunk == nullptr) return;
      if (!sequence.swapped && chunk->first_position % kPage != 0) {
        int32_t& shared =
            holders[sequence.pages[static_cast<size_t>(chunk->first_position / kPage)]];
        if (shared > 1) shared--, free--;
      }
      const int32_t needed = (chunk->first_position + chunk->row_count + kPage - 1) / kPage;
      free -= std::max(needed - static_cast<int32_t>(sequence.pages.size()), 0);
    };
    for (const SequenceState& sequence : state_.running) take(sequence);
    for (const SequenceState& sequence : admitted()) take(sequence);
    ASSERT_GE(free, 0) << "more pages than there are";
  }

  void check_rows() {
    int32_t rows = 0;
    bool prefill_seen = false;
    std::vector<SequenceState> all(state_.running.begin(), state_.running.end());
    all.insert(all.end(), admitted().begin(), admitted().end());
    for (const PlannedChunk& chunk : plan_.chunks) {
      const auto own = std::ranges::find(all, chunk.id, &SequenceState::id);
      ASSERT_NE(own, all.end()) << "planned, but it does not run";
      ASSERT_EQ(std::ranges::count(plan_.chunks, chunk.id, &PlannedChunk::id), 1);
      ASSERT_FALSE(own->waits);
      ASSERT_EQ(chunk.first_position, own->computed);
      ASSERT_GE(chunk.row_count, 1);
      ASSERT_LE(chunk.first_position + chunk.row_count, own->known);
      const bool decodes = own->known - own->computed == 1;
      ASSERT_FALSE(decodes && prefill_seen) << "a decode row after a prefill row";
      prefill_seen = prefill_seen || !decodes;
      rows += chunk.row_count;
    }
    ASSERT_LE(rows, state_.limits.max_step_tokens);
    ASSERT_LE(
        static_cast<int32_t>(state_.running.size() - plan_.preempt.size()) + plan_.admit_count,
        state_.limits.max_running);
    for (const SequenceState& newcomer : admitted()) ASSERT_NE(chunk_of(newcomer.id), nullptr);
  }

  // The first in rank that does not wait for its client computes a row, whatever others hold. Of
  // one priority those that run come first.
  void check_progress() {
    const auto can_run = [](const SequenceState& s) { return !s.waits; };
    const auto runs = std::ranges::find_if(state_.running, can_run);
    const SequenceState* first = runs == state_.running.end() ? nullptr : &*runs;
    if (!state_.waiting.empty() &&
        (first == nullptr || state_.waiting.front().priority > first->priority)) {
      first = &state_.waiting.front();
    }
    if (first == nullptr) {
      ASSERT_TRUE(plan_.chunks.empty() && plan_.preempt.empty());
    } else {
      ASSERT_NE(chunk_of(first->id), nullptr) << "no progress of sequence " << first->id.value;
    }
  }

  const RandomState& state_;
  const StepPlan& plan_;
};

TEST(SchedulerProperties, EveryPlanFitsAndServesTheFirstInRank) {
  RandomData random;
  int64_t preempted = 0, swapped = 0, admitted = 0, waiters = 0;
  StepPlan plan;  // reused: a plan is a function of the state alone
  for (int round = 0; round < 200'000; round++) {
    const RandomState state(random);
    SCOPED_TRACE(random.describe() + ", round " + std::to_string(round));
    plan_step(state.view(), state.limits, plan);
    Check(state, plan).all();
    if (HasFatalFailure()) return;
    if (round % 10 == 0) {
      StepPlan fresh;
      plan_step(state.view(), state.limits, fresh);
      ASSERT_TRUE(fresh.preempt == plan.preempt && fresh.admit_count == plan.admit_count &&
                  fresh.chunks == plan.chunks);
    }
    admitted += plan.admit_count;
    for (const Preemption& preemption : plan.preempt) {
      preempted++;
      swapped += preemption.swap;
      waiters += std::ranges::find(state.running, preemption.id, &SequenceState::id)->waits;
    }
  }
  for (const int64_t count : {preempted, swapped, admitted, waiters}) EXPECT_GT(count, 2'000);
}

}  // namespace
}  // namespace exact
