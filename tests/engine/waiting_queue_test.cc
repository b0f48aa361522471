// The order of admission, rule by rule.
#include "engine/waiting_queue.h"

#include <gtest/gtest.h>

#include <vector>

namespace exact {
namespace {

// Sequences in order of admission; each is admitted as it is named.
std::vector<int32_t> admit_all(WaitingQueue& queue) {
  std::vector<int32_t> order;
  while (!queue.empty()) {
    const WaitingQueue::Place first = *queue.places().begin();
    order.push_back(first.sequence.value);
    queue.admitted(first);
  }
  return order;
}

TEST(WaitingQueue, OneClientIsServedInOrderOfArrival) {
  WaitingQueue queue;
  for (int32_t i = 1; i <= 4; i++) queue.add_new(SequenceId{i}, 0, 9, 1);
  EXPECT_EQ(admit_all(queue), (std::vector<int32_t>{1, 2, 3, 4}));
}

TEST(WaitingQueue, ClientsTakeTurnsHoweverManyRequestsOneOfThemHas) {
  WaitingQueue queue;
  for (int32_t i = 1; i <= 5; i++) queue.add_new(SequenceId{i}, 0, 1, 1);
  for (int32_t i = 11; i <= 13; i++) queue.add_new(SequenceId{i}, 0, 2, 1);
  EXPECT_EQ(admit_all(queue), (std::vector<int32_t>{1, 11, 2, 12, 3, 13, 4, 5}));
}

TEST(WaitingQueue, AGroupTakesATurnForEachOfItsSequences) {
  WaitingQueue queue;
  queue.add_new(SequenceId{1}, 0, 1, 3);
  queue.add_new(SequenceId{2}, 0, 1, 1);
  for (int32_t i = 11; i <= 14; i++) queue.add_new(SequenceId{i}, 0, 2, 1);
  EXPECT_EQ(admit_all(queue), (std::vector<int32_t>{1, 11, 12, 13, 2, 14}));
}

TEST(WaitingQueue, AClientThatWasAwayHasNoTurnsSavedUp) {
  WaitingQueue queue;
  for (int32_t i = 1; i <= 6; i++) queue.add_new(SequenceId{i}, 0, 1, 1);
  for (int32_t i = 0; i < 3; i++) queue.admitted(*queue.places().begin());
  for (int32_t i = 11; i <= 14; i++) queue.add_new(SequenceId{i}, 0, 2, 1);
  EXPECT_EQ(admit_all(queue), (std::vector<int32_t>{11, 4, 12, 5, 13, 6, 14}));
}

TEST(WaitingQueue, PriorityComesFirstThenThoseThatHaveRunOldestFirst) {
  WaitingQueue queue;
  queue.add_new(SequenceId{1}, 0, 1, 1);
  queue.add_new(SequenceId{2}, 1, 1, 1);
  queue.add_again(SequenceId{3}, 0, 8);
  queue.add_again(SequenceId{4}, 0, 5);
  queue.add_again(SequenceId{5}, -1, 1);
  EXPECT_EQ(admit_all(queue), (std::vector<int32_t>{2, 4, 3, 1, 5}));
}

TEST(WaitingQueue, ARemovedOneIsNotAdmitted) {
  WaitingQueue queue;
  queue.add_new(SequenceId{1}, 0, 1, 1);
  const auto place = queue.add_new(SequenceId{2}, 0, 1, 1);
  queue.add_new(SequenceId{3}, 0, 1, 1);
  queue.remove(place);
  EXPECT_EQ(admit_all(queue), (std::vector<int32_t>{1, 3}));
}

// Every client is served within as many admissions as there are clients.
TEST(WaitingQueue, NobodyStarvesBesideClientsThatNeverStopAsking) {
  WaitingQueue queue;
  int32_t next = 100;
  for (uint32_t client = 0; client < 2000; client++)
    queue.add_new(SequenceId{next++}, 0, client, 1);
  queue.add_new(SequenceId{1}, 0, 5000, 1);
  for (int admissions = 0; admissions <= 2000; admissions++) {
    const WaitingQueue::Place first = *queue.places().begin();
    queue.admitted(first);
    if (first.sequence.value == 1) return;
    queue.add_new(SequenceId{next++}, 0, static_cast<uint32_t>(admissions % 2000), 1);
  }
  FAIL() << "2000 others were admitted twice before it";
}

}  // namespace
}  // namespace exact
