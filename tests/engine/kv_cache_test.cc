// The page pool against a model of it, and its rules one by one.
#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "tests/support/random_data.h"

namespace exact {
namespace {

std::vector<int32_t> pages_of(const PagePool& pool, uint64_t sequence) {
  const auto pages = pool.pages(SequenceId{sequence});
  return {pages.begin(), pages.end()};
}

TEST(PagePool, PagesForRoundsUpAndNothingNeedsNothing) {
  const PagePool pool(4, 16);
  EXPECT_EQ(pool.pages_for(0), 0);
  EXPECT_EQ(pool.pages_for(1), 1);
  EXPECT_EQ(pool.pages_for(16), 1);
  EXPECT_EQ(pool.pages_for(17), 2);
}

TEST(PagePool, ReserveGrowsInOrderAndKeepsWhatIsThere) {
  PagePool pool(8, 16);
  const SequenceId one{1};
  pool.reserve(one, 20);
  const auto first = pages_of(pool, 1);
  ASSERT_EQ(first.size(), 2u);
  pool.reserve(SequenceId{2}, 16);
  pool.reserve(one, 10);  // less than it has: nothing happens
  pool.reserve(one, 50);
  const auto grown = pages_of(pool, 1);
  ASSERT_EQ(grown.size(), 4u);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), grown.begin()));
  EXPECT_EQ(pool.free_pages(), 3);
  EXPECT_TRUE(pool.check_integrity().is_ok());
}

TEST(PagePool, CanReserveCountsThePagesItHolds) {
  PagePool pool(4, 16);
  pool.reserve(SequenceId{1}, 32);
  pool.reserve(SequenceId{2}, 16);
  EXPECT_TRUE(pool.can_reserve(SequenceId{1}, 48));
  EXPECT_FALSE(pool.can_reserve(SequenceId{1}, 49));
  EXPECT_FALSE(pool.can_reserve(SequenceId{3}, 17));
  EXPECT_TRUE(pool.can_reserve(SequenceId{3}, 0));
}

TEST(PagePool, FreedPagesGoOutBeforeFreshOnes) {
  PagePool pool(8, 16);
  pool.reserve(SequenceId{1}, 48);
  const auto warm = pages_of(pool, 1);
  pool.release(SequenceId{1});
  pool.reserve(SequenceId{2}, 48);
  EXPECT_EQ(pages_of(pool, 2), warm);
}

TEST(PagePool, ReleaseOfNothingIsFineAndOfAllGivesAllBack) {
  PagePool pool(5, 32);
  pool.release(SequenceId{9});
  pool.reserve(SequenceId{1}, 5 * 32);
  EXPECT_EQ(pool.free_pages(), 0);
  pool.release(SequenceId{1});
  pool.release(SequenceId{1});
  EXPECT_EQ(pool.free_pages(), 5);
  EXPECT_TRUE(pool.pages(SequenceId{1}).empty());
  EXPECT_TRUE(pool.check_integrity().is_ok());
}

TEST(PagePoolDeathTest, ReserveBeyondThePoolIsABug) {
  PagePool pool(2, 16);
  EXPECT_DEATH(pool.reserve(SequenceId{1}, 33), "can_reserve");
}

// The model: a map from sequence to pages. After every operation the pool agrees with it.
TEST(PagePool, AgreesWithItsModelOverRandomOperations) {
  RandomData random;
  SCOPED_TRACE(random.describe());
  for (int episode = 0; episode < 200; episode++) {
    const auto page_count = static_cast<int32_t>(random.between(1, 40));
    const auto page_size = static_cast<int32_t>(16 << random.between(0, 3));
    PagePool pool(page_count, page_size);
    std::map<uint64_t, std::vector<int32_t>> model;
    for (int operation = 0; operation < 1000; operation++) {
      const auto id = static_cast<uint64_t>(random.between(0, 9));
      if (random.between(0, 3) == 0) {
        pool.release(SequenceId{id});
        model.erase(id);
      } else {
        const auto positions =
            static_cast<int32_t>(random.between(0, int64_t{page_count} * page_size + 1));
        const size_t needed = static_cast<size_t>((positions + page_size - 1) / page_size);
        size_t held = 0;
        for (const auto& [other, pages] : model) held += pages.size();
        const size_t mine = model.contains(id) ? model[id].size() : 0;
        const bool fits = needed <= mine || needed - mine <= static_cast<size_t>(page_count) - held;
        ASSERT_EQ(pool.can_reserve(SequenceId{id}, positions), fits) << "episode " << episode;
        if (!fits) continue;
        pool.reserve(SequenceId{id}, positions);
        const auto now = pages_of(pool, id);
        ASSERT_EQ(now.size(), std::max(needed, mine));
        const auto& before = model[id];
        ASSERT_TRUE(std::equal(before.begin(), before.end(), now.begin()));
        model[id] = now;
      }
      std::set<int32_t> used;
      for (const auto& [other, pages] : model) {
        ASSERT_EQ(pages_of(pool, other), pages) << "episode " << episode;
        for (const int32_t page : pages) ASSERT_TRUE(used.insert(page).second);
      }
      ASSERT_EQ(pool.free_pages(), page_count - static_cast<int32_t>(used.size()));
      const Status integrity = pool.check_integrity();
      ASSERT_TRUE(integrity.is_ok()) << integrity.to_string();
    }
  }
}

}  // namespace
}  // namespace exact
