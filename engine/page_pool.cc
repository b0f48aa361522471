#include "engine/page_pool.h"

#include <string>

namespace exact {

PagePool::PagePool(int32_t page_count) {
  EXACT_CHECK(page_count > 0, "a pool needs pages");
  holders_.assign(static_cast<size_t>(page_count), kFree);
  free_.reserve(static_cast<size_t>(page_count));
  // What was freed last goes out first, and fresh pages in ascending order.
  for (int32_t page = page_count - 1; page >= 0; page--) free_.push_back(page);
}

int32_t PagePool::take() {
  EXACT_CHECK(!free_.empty(), "a page of a pool that has none");
  const int32_t page = free_.back();
  free_.pop_back();
  holders_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::share(int32_t page) {
  int32_t& holders = holders_[static_cast<size_t>(page)];
  EXACT_CHECK(holders >= 0, "a free page is shared");
  holders++;
}

int32_t PagePool::drop(int32_t page) {
  int32_t& holders = holders_[static_cast<size_t>(page)];
  EXACT_CHECK(holders > 0, "a page that nobody holds is dropped");
  return --holders;
}

void PagePool::give_back(int32_t page) {
  int32_t& holders = holders_[static_cast<size_t>(page)];
  EXACT_CHECK(holders == 0, "a page that is held or free is given back");
  holders = kFree;
  free_.push_back(page);
}

Status PagePool::check_integrity() const {
  std::vector<bool> seen(holders_.size());
  for (const int32_t page : free_) {
    const auto p = static_cast<size_t>(page);
    if (page < 0 || page >= page_count() || holders_[p] != kFree || seen[p]) {
      return Status(Code::corrupt,
                    "the free list has page " + std::to_string(page) + " twice, or it is not free");
    }
    seen[p] = true;
  }
  for (size_t page = 0; page < holders_.size(); page++) {
    if (holders_[page] == kFree && !seen[page]) {
      return Status(Code::corrupt, "page " + std::to_string(page) + " is lost");
    }
  }
  return {};
}

}  // namespace exact
