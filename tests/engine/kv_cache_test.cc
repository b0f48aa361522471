// The pages of sequences: rules one by one, and all of them against a model over random operations.
#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/support/random_data.h"

namespace exact {
namespace {

constexpr int32_t kPage = 16;

std::vector<int32_t> text(int32_t size, int32_t first = 0) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < size; i++) ids.push_back(first + i);
  return ids;
}

// Holds the whole of `ids`, and lets go of it.
void compute(KvPages& pages, const std::vector<int32_t>& ids) {
  PageList list;
  pages.grow(list, static_cast<int32_t>(ids.size()));
  pages.publish(list, ids, static_cast<int32_t>(ids.size()));
  pages.release(list);
}

std::vector<int32_t> find(const KvPages& pages, const std::vector<int32_t>& ids) {
  std::vector<int32_t> found;
  pages.find(ids, found);
  return found;
}

TEST(KvPages, PagesForRoundsUpAndNothingNeedsNothing) {
  const KvPages pages(4, kPage, true);
  EXPECT_EQ(pages.pages_for(0), 0);
  EXPECT_EQ(pages.pages_for(1), 1);
  EXPECT_EQ(pages.pages_for(16), 1);
  EXPECT_EQ(pages.pages_for(17), 2);
}

TEST(KvPages, GrowKeepsWhatIsThere) {
  KvPages pages(8, kPage, true);
  PageList list;
  pages.grow(list, 20);
  const auto first = list.pages;
  ASSERT_EQ(first.size(), 2u);
  pages.grow(list, 10);
  pages.grow(list, 50);
  ASSERT_EQ(list.pages.size(), 4u);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), list.pages.begin()));
  EXPECT_EQ(pages.available(), 4);
}

TEST(KvPages, AFinishedTextIsFoundByWholePages) {
  KvPages pages(8, kPage, true);
  compute(pages, text(40));
  EXPECT_EQ(pages.available(), 8) << "idle pages can be taken";
  EXPECT_EQ(find(pages, text(40)).size(), 2u);
  EXPECT_EQ(find(pages, text(31)).size(), 1u);
  auto other = text(40);
  other[16] = 99;
  EXPECT_EQ(find(pages, other).size(), 1u);
  other[0] = 99;
  EXPECT_EQ(find(pages, other).size(), 0u);
}

TEST(KvPages, AnEqualBlockAfterAnotherTextIsAnotherBlock) {
  KvPages pages(8, kPage, true);
  auto first = text(32), second = text(32);
  second[3] = 77;
  compute(pages, first);
  EXPECT_EQ(find(pages, second).size(), 0u);
  compute(pages, second);
  const auto found_first = find(pages, first), found_second = find(pages, second);
  ASSERT_EQ(found_first.size(), 2u);
  ASSERT_EQ(found_second.size(), 2u);
  EXPECT_NE(found_first[1], found_second[1]);
}

TEST(KvPages, AHashAloneNeverDecides) {
  KvPages pages(32, kPage, true, 0);  // every hash is 0
  for (int32_t i = 0; i < 10; i++) compute(pages, text(48, 100 * i));
  std::set<int32_t> seen;
  for (int32_t i = 0; i < 10; i++) {
    const auto found = find(pages, text(48, 100 * i));
    ASSERT_EQ(found.size(), 3u);
    for (const int32_t page : found) EXPECT_TRUE(seen.insert(page).second);
  }
  EXPECT_EQ(find(pages, text(48, 5)).size(), 0u);
}

TEST(KvPages, TheTextThatWasIdleLongestIsEvictedFirstAndItsEndBeforeItsBeginning) {
  KvPages pages(4, kPage, true);
  compute(pages, text(32, 100));
  compute(pages, text(32, 200));
  PageList again;
  pages.adopt(find(pages, text(32, 100)), again);  // used again: now the other is older
  pages.release(again);
  PageList list;
  pages.grow(list, kPage);
  EXPECT_EQ(pages.evictions(), 1u);
  EXPECT_EQ(find(pages, text(32, 200)).size(), 1u);
  EXPECT_EQ(find(pages, text(32, 100)).size(), 2u);
  pages.grow(list, 2 * kPage);
  EXPECT_EQ(find(pages, text(32, 200)).size(), 0u);
  EXPECT_EQ(find(pages, text(32, 100)).size(), 2u);
}

TEST(KvPages, WithoutReuseNothingIsFound) {
  KvPages pages(4, kPage, false);
  compute(pages, text(32));
  EXPECT_EQ(find(pages, text(32)).size(), 0u);
}

TEST(KvPages, ForgottenTextsAreFoundByNobody) {
  KvPages pages(8, kPage, true);
  compute(pages, text(32));
  PageList held;
  pages.adopt(find(pages, text(32)), held);
  pages.forget_texts();
  EXPECT_EQ(find(pages, text(32)).size(), 0u);
  EXPECT_EQ(pages.available(), 6);
  pages.release(held);
  EXPECT_EQ(pages.available(), 8);
  const PageList* lists[] = {&held};
  EXPECT_TRUE(pages.check_integrity(lists).is_ok());
}

TEST(KvPages, AForkSharesAllAndCopiesBeforeItWrites) {
  KvPages pages(8, kPage, true);
  PageList leader, sample;
  pages.grow(leader, 20);
  pages.fork(leader, sample);
  EXPECT_EQ(pages.available(), 6);
  EXPECT_TRUE(pages.is_shared(sample, 20));
  const PageCopy copy = pages.unshare(sample, 20);
  EXPECT_EQ(copy.from, leader.pages[1]);
  EXPECT_EQ(copy.to, sample.pages[1]);
  EXPECT_NE(copy.from, copy.to);
  EXPECT_FALSE(pages.is_shared(leader, 20)) << "the last holder writes in place";
  pages.release(leader);
  EXPECT_EQ(sample.pages.size(), 2u);
  EXPECT_EQ(pages.available(), 6);
}

TEST(KvPagesDeathTest, MorePagesThanThereAreIsABug) {
  KvPages pages(2, kPage, true);
  PageList list;
  EXPECT_DEATH(pages.grow(list, 33), "has none");
}

// The model: what each page should hold, by whole text. A page that is found holds what it says.
class PagesAgainstModel {
 public:
  PagesAgainstModel(RandomData& random, int32_t page_count)
      : random_(random),
        pages_(page_count, kPage, true, random.between(0, 1) == 0 ? 3 : UINT64_MAX),
        lists_(6),
        texts_(6) {}

  void operate() {
    const auto i = static_cast<size_t>(random_.between(0, 5));
    const int64_t choice = random_.between(0, 99);
    if (choice < 25) release(i);
    if (choice >= 25 && choice < 75) extend(i);
    if (choice >= 75 && choice < 98) fork(i);
    if (choice >= 98) flush();
    check();
  }

 private:
  void release(size_t i) {
    pages_.release(lists_[i]);
    texts_[i].clear();
  }

  // Starts from what is found, or goes on, by up to three pages.
  void extend(size_t i) {
    if (texts_[i].empty()) {
      const auto first = static_cast<int32_t>(random_.between(0, 2));
      std::vector<int32_t> wanted = text(static_cast<int32_t>(random_.between(1, 80)), first);
      std::vector<int32_t> found;
      pages_.find(wanted, found);
      for (size_t b = 0; b < found.size(); b++) {
        const std::vector<int32_t> prefix(wanted.begin(),
                                          wanted.begin() + static_cast<long>((b + 1) * kPage));
        ASSERT_EQ(content_[found[b]], prefix) << "a page that holds something else is found";
      }
      pages_.adopt(found, lists_[i]);
      wanted.resize(found.size() * kPage);
      texts_[i] = wanted;
    }
    const auto more = static_cast<int32_t>(random_.between(1, 3 * kPage));
    const auto size = static_cast<int32_t>(texts_[i].size());
    const int32_t needed =
        pages_.pages_for(size + more) - static_cast<int32_t>(lists_[i].pages.size()) + 1;
    if (needed > pages_.available()) return;
    if (size % kPage != 0 && pages_.is_shared(lists_[i], size)) {
      const PageCopy copy = pages_.unshare(lists_[i], size);
      content_[copy.to] = content_[copy.from];
    }
    pages_.grow(lists_[i], size + more);
    for (int32_t n = 0; n < more; n++) {
      texts_[i].push_back(random_.between(0, 9) == 0 ? 999 : size + n);
      const auto page = static_cast<size_t>((size + n) / kPage);
      content_[lists_[i].pages[page]] = texts_[i];
    }
    pages_.publish(lists_[i], texts_[i], size + more);
  }

  void fork(size_t i) {
    const auto from = static_cast<size_t>(random_.between(0, 5));
    if (from == i || !lists_[i].pages.empty()) return;
    pages_.fork(lists_[from], lists_[i]);
    texts_[i] = texts_[from];
  }

  void flush() {
    for (size_t i = 0; i < lists_.size(); i++) release(i);
    pages_.forget_texts();
    ASSERT_EQ(pages_.available(), pages_.page_count());
    content_.clear();
  }

  void check() {
    std::vector<const PageList*> all;
    std::set<int32_t> held;
    for (size_t i = 0; i < lists_.size(); i++) {
      all.push_back(&lists_[i]);
      held.insert(lists_[i].pages.begin(), lists_[i].pages.end());
      ASSERT_EQ(lists_[i].pages.size(), (texts_[i].size() + kPage - 1) / kPage);
      for (size_t b = 0; b < lists_[i].pages.size(); b++) {
        const size_t end = std::min((b + 1) * kPage, texts_[i].size());
        const std::vector<int32_t> prefix(texts_[i].begin(),
                                          texts_[i].begin() + static_cast<long>(end));
        ASSERT_EQ(content_[lists_[i].pages[b]], prefix) << "another wrote into its page";
      }
    }
    ASSERT_EQ(pages_.available(), pages_.page_count() - static_cast<int32_t>(held.size()));
    const Status integrity = pages_.check_integrity(all);
    ASSERT_TRUE(integrity.is_ok()) << integrity.to_string();
  }

  RandomData& random_;
  KvPages pages_;
  std::vector<PageList> lists_;
  std::vector<std::vector<int32_t>> texts_;
  std::map<int32_t, std::vector<int32_t>> content_;  // the text up to the page's last position
};

TEST(KvPages, AgreesWithItsModelOverRandomOperations) {
  RandomData random;
  SCOPED_TRACE(random.describe());
  for (int episode = 0; episode < 100; episode++) {
    PagesAgainstModel model(random, static_cast<int32_t>(random.between(1, 40)));
    for (int operation = 0; operation < 1000; operation++) {
      model.operate();
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace exact
