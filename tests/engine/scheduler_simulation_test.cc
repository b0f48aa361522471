// The scheduler and the page pool together, over two million random operations: requests come, are
// cancelled and finish, updates drop every cache, and small pools preempt. After each operation
// every rule that needs no clock is checked; every episode must come to its end.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <set>
#include <string>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/scheduler.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

struct SimulatedSequence {
  uint64_t id = 0;
  int32_t computed = 0;
  int32_t known = 0;
  int32_t final_known = 0;  // it ends when so many positions are computed
};

struct SimulatedTotals {
  int64_t operations = 0, steps = 0, preemptions = 0, finished = 0, cancelled = 0;
};

// What the engine does with a plan, without a model: one step a call.
class Simulation {
 public:
  Simulation(RandomData& random, SimulatedTotals& totals)
      : random_(random),
        totals_(totals),
        limits_{pick_rows(random), static_cast<int32_t>(random.between(1, 16)),
                static_cast<int32_t>(16 << random.between(0, 3))},
        max_context_(static_cast<int32_t>(random.between(2, 300))),
        pool_(pages_of_one() + static_cast<int32_t>(random.between(0, 2 * pages_of_one())),
              limits_.page_size) {}

  std::string describe() const {
    return "rows " + std::to_string(limits_.max_step_tokens) + ", running " +
           std::to_string(limits_.max_running) + ", page size " +
           std::to_string(limits_.page_size) + ", pages " + std::to_string(pool_.page_count()) +
           ", context " + std::to_string(max_context_);
  }

  void random_operation() {
    const int64_t choice = random_.between(0, 99);
    if (choice < 10) submit();
    if (choice >= 10 && choice < 12) cancel();
    if (choice == 12) drop_all_caches();
    if (choice >= 13) step();
    check();
  }

  // Nothing new comes: each step computes a row of the oldest sequence at least, and only an
  // update, none here, takes it back.
  void drain() {
    int64_t most_steps = 0;
    for (const auto& sequence : running_) most_steps += sequence.final_known;
    for (const auto& sequence : waiting_) most_steps += sequence.final_known;
    for (int64_t i = 0; !(running_.empty() && waiting_.empty()); i++) {
      ASSERT_LT(i, most_steps) << "it does not come to an end";
      step();
      check();
      if (testing::Test::HasFatalFailure()) return;
    }
    ASSERT_EQ(pool_.free_pages(), pool_.page_count()) << "pages leaked";
  }

 private:
  static int32_t pick_rows(RandomData& random) {
    return static_cast<int32_t>(random.between(0, 15) == 0 ? random.between(1, 4)
                                                           : random.between(1, 300));
  }
  int32_t pages_of_one() const {
    return (max_context_ + limits_.page_size - 1) / limits_.page_size;
  }

  void submit() {
    totals_.operations++;
    SimulatedSequence sequence;
    sequence.id = next_id_++;
    // Short prompts that grow long are what runs a pool out of pages.
    const int32_t longest = random_.between(0, 3) == 0 ? max_context_ - 1 : max_context_ / 8 + 1;
    sequence.known = static_cast<int32_t>(random_.between(1, longest));
    sequence.final_known = static_cast<int32_t>(random_.between(sequence.known, max_context_ - 1));
    waiting_.push_back(sequence);
  }

  void cancel() {
    const auto count = static_cast<int64_t>(running_.size() + waiting_.size());
    if (count == 0) return;
    totals_.operations++;
    totals_.cancelled++;
    const auto which = static_cast<size_t>(random_.between(0, count - 1));
    if (which < running_.size()) {
      pool_.release(SequenceId{running_[which].id});
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(which));
    } else {
      waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(which - running_.size()));
    }
  }

  void drop_all_caches() {
    totals_.operations++;
    for (SimulatedSequence& sequence : running_) {
      pool_.release(SequenceId{sequence.id});
      sequence.computed = 0;
    }
  }

  void step() {
    make_plan();
    if (running_.empty() && waiting_.empty()) return;
    totals_.operations++;
    totals_.steps++;
    check_plan();
    if (testing::Test::HasFatalFailure()) return;
    preempt_and_admit();
    compute();
  }

  void make_plan() {
    running_states_.clear();
    waiting_states_.clear();
    for (const auto& sequence : running_) running_states_.push_back(state_of(sequence));
    for (const auto& sequence : waiting_) {
      if (waiting_states_.size() >= static_cast<size_t>(limits_.max_running)) break;
      waiting_states_.push_back(state_of(sequence));
    }
    plan_step({running_states_, waiting_states_, pool_.free_pages(), false}, limits_, plan_);
  }

  SequenceState state_of(const SimulatedSequence& sequence) const {
    return {SequenceId{sequence.id}, sequence.computed, sequence.known,
            static_cast<int32_t>(pool_.pages(SequenceId{sequence.id}).size())};
  }

  // What can be said of a plan before it is carried out.
  void check_plan() {
    const size_t preempted = plan_.preempt.size();
    ASSERT_TRUE(running_.empty() || preempted < running_.size()) << "all are preempted";
    for (size_t i = 0; i < preempted; i++) {
      ASSERT_EQ(plan_.preempt[i].value, running_[running_.size() - 1 - i].id) << "not the youngest";
    }
    const size_t kept = running_.size() - preempted;
    ASSERT_GE(plan_.admit_count, 0);
    const auto admitted = static_cast<size_t>(plan_.admit_count);
    ASSERT_LE(admitted, waiting_states_.size());
    ASSERT_TRUE(preempted == 0 || admitted == 0) << "admitted in a step that preempted";
    ASSERT_LE(kept + admitted, static_cast<size_t>(limits_.max_running));

    int32_t rows = 0;
    bool prefill_seen = false;
    std::set<uint64_t> planned;
    for (const PlannedChunk& chunk : plan_.chunks) {
      ASSERT_GE(chunk.row_count, 1);
      ASSERT_TRUE(planned.insert(chunk.id.value).second) << "planned twice";
      rows += chunk.row_count;
      const SimulatedSequence* sequence = will_run(chunk.id.value, kept, admitted);
      ASSERT_NE(sequence, nullptr) << "planned, but it does not run";
      ASSERT_EQ(chunk.first_position, sequence->computed);
      ASSERT_LE(chunk.first_position + chunk.row_count, sequence->known);
      const bool decodes = sequence->known - sequence->computed == 1;
      ASSERT_FALSE(decodes && prefill_seen) << "a decode row after a prefill row";
      prefill_seen = prefill_seen || !decodes;
    }
    ASSERT_LE(rows, limits_.max_step_tokens);
    const uint64_t oldest = running_.empty() ? waiting_.front().id : running_.front().id;
    ASSERT_TRUE(planned.contains(oldest)) << "the oldest does not go on";
    for (size_t i = 0; i < admitted; i++) ASSERT_TRUE(planned.contains(waiting_[i].id));
    for (size_t i = 0; admitted > 0 && i < kept; i++) {
      ASSERT_TRUE(planned.contains(running_[i].id)) << "admitted before a running one went on";
    }
  }

  const SimulatedSequence* will_run(uint64_t id, size_t kept, size_t admitted) const {
    const auto is_it = [id](const SimulatedSequence& sequence) { return sequence.id == id; };
    const auto kept_end = running_.begin() + static_cast<std::ptrdiff_t>(kept);
    const auto admitted_end = waiting_.begin() + static_cast<std::ptrdiff_t>(admitted);
    if (const auto found = std::find_if(running_.begin(), kept_end, is_it); found != kept_end) {
      return &*found;
    }
    const auto found = std::find_if(waiting_.begin(), admitted_end, is_it);
    return found == admitted_end ? nullptr : &*found;
  }

  void preempt_and_admit() {
    for (const SequenceId id : plan_.preempt) {
      pool_.release(id);
      running_.back().computed = 0;
      waiting_.push_front(running_.back());
      running_.pop_back();
      totals_.preemptions++;
    }
    for (int32_t i = 0; i < plan_.admit_count; i++) {
      running_.push_back(waiting_.front());
      waiting_.pop_front();
    }
  }

  void compute() {
    for (const PlannedChunk& chunk : plan_.chunks) {
      const int32_t end = chunk.first_position + chunk.row_count;
      ASSERT_TRUE(pool_.can_reserve(chunk.id, end)) << "the plan takes more pages than there are";
      pool_.reserve(chunk.id, end);
    }
    for (const PlannedChunk& chunk : plan_.chunks) {
      const auto found = std::find_if(running_.begin(), running_.end(), [&](const auto& sequence) {
        return sequence.id == chunk.id.value;
      });
      found->computed += chunk.row_count;
      if (found->computed == found->known) found->known++;  // it drew a token
      if (found->computed < found->final_known) continue;
      pool_.release(chunk.id);
      running_.erase(found);
      totals_.finished++;
    }
  }

  void check() {
    if (testing::Test::HasFatalFailure()) return;
    const Status integrity = pool_.check_integrity();
    ASSERT_TRUE(integrity.is_ok()) << integrity.to_string();
    // First come, first served: who runs came before who waits, each in order of arrival.
    uint64_t previous = 0;
    int32_t held = 0;
    for (const auto& sequence : running_) {
      ASSERT_LT(previous, sequence.id);
      previous = sequence.id;
      const auto pages = static_cast<int32_t>(pool_.pages(SequenceId{sequence.id}).size());
      ASSERT_EQ(pages, pool_.pages_for(sequence.computed)) << "pages without positions";
      held += pages;
    }
    for (const auto& sequence : waiting_) {
      ASSERT_LT(previous, sequence.id);
      previous = sequence.id;
      ASSERT_TRUE(pool_.pages(SequenceId{sequence.id}).empty()) << "it waits, with pages";
    }
    ASSERT_EQ(held + pool_.free_pages(), pool_.page_count()) << "pages of nobody";
  }

  RandomData& random_;
  SimulatedTotals& totals_;
  SchedulerLimits limits_;
  int32_t max_context_;
  PagePool pool_;
  std::vector<SimulatedSequence> running_;
  std::deque<SimulatedSequence> waiting_;
  uint64_t next_id_ = 1;
  std::vector<SequenceState> running_states_, waiting_states_;
  StepPlan plan_;
};

TEST(SchedulerSimulation, TwoMillionOperationsKeepEveryRuleAndComeToAnEnd) {
  RandomData random;
  SimulatedTotals totals;
  for (int episode = 0; totals.operations < 2'000'000; episode++) {
    Simulation simulation(random, totals);
    SCOPED_TRACE(random.describe() + ", episode " + std::to_string(episode) + ": " +
                 simulation.describe());
    for (int operation = 0; operation < 1000 && !HasFatalFailure(); operation++) {
      simulation.random_operation();
    }
    if (!HasFatalFailure()) simulation.drain();
    if (HasFatalFailure()) return;
  }
  // The episodes reached what they are here for.
  EXPECT_GT(totals.preemptions, 8'000);
  EXPECT_GT(totals.cancelled, 1'000);
  EXPECT_GT(totals.finished, 10'000);
  RecordProperty("steps", std::to_string(totals.steps));
  RecordProperty("preemptions", std::to_string(totals.preemptions));
}

TEST(SchedulerSimulation, APlanIsAFunctionOfTheStateAlone) {
  RandomData random;
  SCOPED_TRACE(random.describe());
  for (int round = 0; round < 2'000; round++) {
    const SchedulerLimits limits{static_cast<int32_t>(random.between(1, 100)),
                                 static_cast<int32_t>(random.between(1, 16)), 16};
    std::vector<SequenceState> running, waiting;
    for (uint64_t id = 1; id <= 12; id++) {
      const auto computed = static_cast<int32_t>(random.between(0, 60));
      const auto known = computed + static_cast<int32_t>(random.between(1, 40));
      if (id <= 8) running.push_back({SequenceId{id}, computed, known, (computed + 15) / 16});
      if (id > 8) waiting.push_back({SequenceId{id}, 0, known, 0});
    }
    const SchedulerState state{running, waiting, static_cast<int32_t>(random.between(0, 8)), false};
    StepPlan fresh, reused;
    reused.preempt = {SequenceId{99}};
    reused.chunks.assign(50, {SequenceId{99}, 1, 1});
    plan_step(state, limits, fresh);
    plan_step(state, limits, reused);
    ASSERT_EQ(fresh.preempt, reused.preempt);
    ASSERT_EQ(fresh.admit_count, reused.admit_count);
    ASSERT_EQ(fresh.chunks, reused.chunks);
  }
}

}  // namespace
}  // namespace exact
