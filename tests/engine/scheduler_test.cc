// The rules of scheduler.h one by one. That they hold together over any history is
// scheduler_simulation_test.cc's.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <deque>
#include <vector>

namespace exact {
namespace {

constexpr int32_t kPage = 16;

// A state in a few words: sequences are named by the order in which they are written, from 1.
class SchedulerTest : public testing::Test {
 protected:
  // Decoding at position `computed`, with just the pages that its cache needs.
  void decoding(int32_t computed) { add(running_, computed, computed + 1); }
  void prefilling(int32_t computed, int32_t known) { add(running_, computed, known); }
  void waiting(int32_t known) { add(waiting_, 0, known); }

  const StepPlan& plan() {
    plan_step({running_, waiting_, holders_, free_pages_, free_swap_pages_}, limits_, plan_);
    return plan_;
  }
  static PlannedChunk chunk(int32_t id, int32_t first_position, int32_t row_count) {
    return {SequenceId{id}, first_position, row_count};
  }
  static std::vector<Preemption> ids(std::vector<int32_t> values, bool swap = false) {
    std::vector<Preemption> out;
    for (const int32_t value : values) out.push_back({SequenceId{value}, swap});
    return out;
  }
  // Sequence `id` holds pages of another one in place of its own.
  void share(SequenceState& state, const SequenceState& with, size_t count) {
    auto& pages = page_lists_[static_cast<size_t>(state.id.value - 1)];
    for (size_t i = 0; i < count; i++) {
      holders_[static_cast<size_t>(pages[i])]--;
      pages[i] = with.pages[i];
      holders_[static_cast<size_t>(pages[i])]++;
    }
  }
  // Whole pages of its text were found; nobody holds them.
  void found(SequenceState& state, int32_t count) {
    auto& pages = page_lists_[static_cast<size_t>(state.id.value - 1)];
    for (int32_t i = 0; i < count; i++) {
      pages.push_back(static_cast<int32_t>(holders_.size()));
      holders_.push_back(0);
    }
    state.computed = count * kPage;
    state.pages = pages;
  }
  using Chunks = std::vector<PlannedChunk>;

  std::vector<SequenceState> running_, waiting_;
  SchedulerLimits limits_{.max_step_tokens = 64, .max_running = 8, .page_size = kPage};
  int32_t free_pages_ = 100, free_swap_pages_ = 0;
  std::vector<int32_t> holders_;
  std::deque<std::vector<int32_t>> page_lists_;  // of sequence 1, 2, ...
  StepPlan plan_;

 private:
  void add(std::vector<SequenceState>& where, int32_t computed, int32_t known) {
    auto& pages = page_lists_.emplace_back();
    for (int32_t i = 0; i < (computed + kPage - 1) / kPage; i++) {
      pages.push_back(static_cast<int32_t>(holders_.size()));
      holders_.push_back(1);
    }
    SequenceState& state = where.emplace_back();
    state.id = SequenceId{static_cast<int32_t>(page_lists_.size())};
    state.computed = computed;
    state.known = known;
    state.pages = pages;
  }
};

TEST_F(SchedulerTest, NothingToDoIsAnEmptyPlan) {
  EXPECT_TRUE(plan().chunks.empty());
  EXPECT_TRUE(plan().preempt.empty());
  EXPECT_EQ(plan().admit_count, 0);
}

TEST_F(SchedulerTest, AnOldPlanIsOverwritten) {
  plan_.preempt = ids({7});
  plan_.admit_count = 3;
  plan_.chunks = {chunk(7, 0, 5)};
  EXPECT_TRUE(plan().chunks.empty() && plan_.preempt.empty() && plan_.admit_count == 0);
}

TEST_F(SchedulerTest, DecodeRowsComeBeforePrefillRows) {
  prefilling(32, 100);
  decoding(40);
  decoding(50);
  limits_.max_step_tokens = 10;
  EXPECT_EQ(plan().chunks, (Chunks{chunk(2, 40, 1), chunk(3, 50, 1), chunk(1, 32, 8)}));
}

TEST_F(SchedulerTest, TheOldestSequenceKeepsARowThoughDecodeRowsFillTheStep) {
  prefilling(32, 100);
  for (int i = 0; i < 5; i++) decoding(40);
  limits_.max_step_tokens = 3;
  EXPECT_EQ(plan().chunks, (Chunks{chunk(2, 40, 1), chunk(3, 40, 1), chunk(1, 32, 1)}));
  limits_.max_step_tokens = 1;
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 32, 1)}));
}

TEST_F(SchedulerTest, OlderSequencesGoFirstWhenRowsRunOut) {
  for (int i = 0; i < 4; i++) decoding(40);
  limits_.max_step_tokens = 2;
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 40, 1), chunk(2, 40, 1)}));
}

TEST_F(SchedulerTest, PrefillIsCutToWhatIsLeftAndTheNextOneWaits) {
  decoding(8);
  prefilling(10, 200);
  prefilling(0, 30);
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 8, 1), chunk(2, 10, 63)}));
}

TEST_F(SchedulerTest, TheLastChunkOfAPrefillLeavesItsRowsToTheNext) {
  prefilling(190, 200);
  prefilling(0, 30);
  waiting(100);
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 190, 10), chunk(2, 0, 30), chunk(3, 0, 24)}));
  EXPECT_EQ(plan().admit_count, 1);
}

TEST_F(SchedulerTest, WaitingSequencesAreAdmittedInOrderOfArrivalWhileThereArePlaces) {
  decoding(5);
  for (int i = 0; i < 4; i++) waiting(3);
  limits_.max_running = 3;
  EXPECT_EQ(plan().admit_count, 2);
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 5, 1), chunk(2, 0, 3), chunk(3, 0, 3)}));
}

TEST_F(SchedulerTest, WaitingSequencesAreAdmittedWhileThereAreRows) {
  for (int i = 0; i < 4; i++) waiting(30);
  EXPECT_EQ(plan().admit_count, 3);
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 0, 30), chunk(2, 0, 30), chunk(3, 0, 4)}));
}

TEST_F(SchedulerTest, AShortRequestDoesNotOvertakeALongOneThatLacksPages) {
  decoding(5);
  waiting(60);
  waiting(1);
  free_pages_ = 4;
  EXPECT_EQ(plan().admit_count, 0);
  free_pages_ = 5;
  EXPECT_EQ(plan().admit_count, 1);
  free_pages_ = 7;
  EXPECT_EQ(plan().admit_count, 2);
}

TEST_F(SchedulerTest, AdmissionLeavesEachRunningSequenceRoomToGrow) {
  decoding(5);
  decoding(5);
  waiting(3);
  free_pages_ = 2;
  EXPECT_EQ(plan().admit_count, 0);
  free_pages_ = 3;
  EXPECT_EQ(plan().admit_count, 1);
}

TEST_F(SchedulerTest, WithNobodyRunningAdmissionNeedsThePagesOfTheChunkAlone) {
  waiting(40);
  free_pages_ = 2;
  EXPECT_EQ(plan().admit_count, 0);
  free_pages_ = 3;
  EXPECT_EQ(plan().admit_count, 1);
}

TEST_F(SchedulerTest, TheYoungestIsPreemptedWhenADecodeRowNeedsAPage) {
  decoding(kPage);  // its page is full
  decoding(5);
  decoding(6);
  free_pages_ = 0;
  EXPECT_EQ(plan().preempt, ids({3}));
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, kPage, 1), chunk(2, 5, 1)}));
}

TEST_F(SchedulerTest, PreemptionTakesTheYoungestFirstUntilThePagesAreThere) {
  prefilling(0, 60);
  prefilling(kPage, 40);
  decoding(5);
  decoding(6);
  free_pages_ = 1;
  EXPECT_EQ(plan().preempt, ids({4, 3, 2}));
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 0, 60)}));
}

TEST_F(SchedulerTest, NobodyIsAdmittedInAStepThatPreempted) {
  decoding(kPage);
  decoding(3 * kPage - 1);
  waiting(1);
  free_pages_ = 0;
  EXPECT_EQ(plan().preempt, ids({2}));
  EXPECT_EQ(plan().admit_count, 0);
}

TEST_F(SchedulerTest, TheYoungestWaitsWithItsPagesRatherThanPreemptAnOlderOne) {
  decoding(5);
  decoding(kPage);
  free_pages_ = 0;
  EXPECT_TRUE(plan().preempt.empty());
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 5, 1)}));
}

TEST_F(SchedulerTest, TheYoungestPrefillIsCutToThePagesThatAreLeft) {
  decoding(5);
  prefilling(kPage, 100);
  free_pages_ = 2;
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 5, 1), chunk(2, kPage, 2 * kPage)}));
}

TEST_F(SchedulerTest, ASequenceAloneIsNeverPreempted) {
  prefilling(kPage, 100);
  free_pages_ = 0;
  EXPECT_TRUE(plan().preempt.empty());
  EXPECT_TRUE(plan().chunks.empty()) << "the pool can't hold it: nothing can be done here";
}

TEST_F(SchedulerTest, ASequenceWithoutRowsThisStepPreemptsNobody) {
  prefilling(0, 100);
  prefilling(kPage, 100);  // no rows are left for it
  decoding(5);
  free_pages_ = 4;
  EXPECT_TRUE(plan().preempt.empty());
  EXPECT_EQ(plan().chunks, (Chunks{chunk(3, 5, 1), chunk(1, 0, 63)}));
}

TEST_F(SchedulerTest, SequencesThatLostTheirCacheInAnUpdatePrefillOldestFirst) {
  prefilling(0, 50);
  prefilling(0, 50);
  prefilling(0, 50);
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 0, 50), chunk(2, 0, 14)}));
}

TEST_F(SchedulerTest, SharedPagesComeFreeWithTheirLastHolder) {
  decoding(kPage);  // its page is full
  decoding(2 * kPage + 1);
  decoding(2 * kPage + 2);
  share(running_[2], running_[1], 2);
  free_pages_ = 0;
  EXPECT_EQ(plan().preempt, ids({3})) << "its own third page is enough";
  share(running_[2], running_[1], 3);
  EXPECT_EQ(plan().preempt, ids({3, 2})) << "the first of the two frees nothing";
}

TEST_F(SchedulerTest, ARowInASharedPageNeedsACopyButForTheLastHolder) {
  decoding(5);
  decoding(5);
  decoding(5);
  share(running_[1], running_[0], 1);
  share(running_[2], running_[0], 1);
  free_pages_ = 2;
  EXPECT_EQ(plan().chunks, (Chunks{chunk(1, 5, 1), chunk(2, 5, 1), chunk(3, 5, 1)}));
  free_pages_ = 1;
  EXPECT_EQ(plan().preempt, ids({3}));
  EXPECT_EQ(plan_.chunks, (Chunks{chunk(1, 5, 1), chunk(2, 5, 1)}));
}

TEST_F(SchedulerTest, PagesThatWereFoundAreNeitherComputedNorFreeAnyMore) {
  waiting(40);
  found(waiting_[0], 2);
  free_pages_ = 2;  // the two that were found
  EXPECT_EQ(plan().admit_count, 0);
  free_pages_ = 3;
  EXPECT_EQ(plan().admit_count, 1);
  EXPECT_EQ(plan_.chunks, (Chunks{chunk(1, 32, 8)}));
  holders_.assign(2, 1);  // others hold them
  free_pages_ = 1;
  EXPECT_EQ(plan().admit_count, 1);
}

TEST_F(SchedulerTest, AHigherPriorityIsServedFirstAndPreemptsForPlaces) {
  decoding(5);
  decoding(6);
  waiting(30);
  waiting_[0].priority = 1;
  limits_.max_running = 2;
  EXPECT_EQ(plan().preempt, ids({2}));
  EXPECT_EQ(plan_.admit_count, 1);
  EXPECT_EQ(plan_.chunks, (Chunks{chunk(1, 5, 1), chunk(3, 0, 30)}));
  waiting_[0].priority = 0;
  EXPECT_TRUE(plan().preempt.empty());
  EXPECT_EQ(plan_.admit_count, 0);
}

TEST_F(SchedulerTest, AHigherPriorityPreemptsForPagesAndALowerOneWaits) {
  decoding(5);
  decoding(6);
  waiting(30);
  running_[0].priority = 2;
  waiting_[0].priority = 1;
  free_pages_ = 2;
  EXPECT_EQ(plan().preempt, ids({2})) << "two pages, and one for the first to grow";
  EXPECT_EQ(plan_.admit_count, 1);
  waiting_[0].priority = -1;
  EXPECT_TRUE(plan().preempt.empty());
  EXPECT_EQ(plan_.admit_count, 0);
}

TEST_F(SchedulerTest, AHigherPriorityGetsARowThoughDecodeRowsFillTheStep) {
  for (int i = 0; i < 4; i++) decoding(5);
  waiting(30);
  waiting_[0].priority = 1;
  limits_.max_step_tokens = 4;
  EXPECT_EQ(plan().chunks,
            (Chunks{chunk(1, 5, 1), chunk(2, 5, 1), chunk(3, 5, 1), chunk(5, 0, 1)}));
}

TEST_F(SchedulerTest, WhoWaitsForItsClientRunsNoRowsAndKeepsItsPages) {
  decoding(5);
  decoding(6);
  running_[0].waits = true;
  EXPECT_EQ(plan().chunks, (Chunks{chunk(2, 6, 1)}));
  running_[1].waits = true;
  EXPECT_TRUE(plan().chunks.empty() && plan_.preempt.empty());
}

TEST_F(SchedulerTest, WhoWaitsForItsClientGivesWayWhenNothingElseCouldRun) {
  decoding(5);
  decoding(6);
  decoding(kPage);
  running_[0].waits = running_[1].waits = true;
  free_pages_ = 0;
  EXPECT_EQ(plan().preempt, ids({2}));
  EXPECT_EQ(plan_.chunks, (Chunks{chunk(3, kPage, 1)}));
  running_.pop_back();
  waiting(3);
  limits_.max_running = 2;
  EXPECT_EQ(plan().preempt, ids({2}));
  EXPECT_EQ(plan_.admit_count, 1);
  EXPECT_EQ(plan_.chunks, (Chunks{chunk(4, 0, 3)}));
}

TEST_F(SchedulerTest, APreemptedSequenceIsSwappedWhereThatIsCheaperAndThereIsRoom) {
  decoding(kPage);
  decoding(3 * kPage);
  free_pages_ = 0;
  limits_.page_bytes = 1000;
  limits_.row_cost_bytes = 2 * 3 * 1000 / (3 * kPage);
  free_swap_pages_ = 3;
  EXPECT_EQ(plan().preempt, ids({2}, true));
  free_swap_pages_ = 2;
  EXPECT_EQ(plan().preempt, ids({2}, false));
  free_swap_pages_ = 3;
  limits_.row_cost_bytes--;
  EXPECT_EQ(plan().preempt, ids({2}, false));
}

TEST_F(SchedulerTest, ASwappedSequenceNeedsAllItsPagesAtOnce) {
  waiting(2 * kPage + 1);
  waiting_[0].swapped = true;
  waiting_[0].computed = 2 * kPage;
  free_pages_ = 2;
  EXPECT_EQ(plan().admit_count, 0);
  free_pages_ = 3;
  EXPECT_EQ(plan().admit_count, 1);
  EXPECT_EQ(plan_.chunks, (Chunks{chunk(1, 2 * kPage, 1)}));
}

using SchedulerDeathTest = SchedulerTest;

TEST_F(SchedulerDeathTest, ASequenceWithNothingToComputeIsABug) {
  prefilling(5, 5);
  EXPECT_DEATH(plan(), "nothing left to compute");
}

}  // namespace
}  // namespace exact
