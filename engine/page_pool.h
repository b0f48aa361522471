// page_pool.h owns which page of the key/value cache is free and how many hold each of the others.
// It moves no data and knows no sequence.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/result.h"

namespace exact {

// Pages 0 .. page_count - 1. A page is free, held (by one or more), or idle: nobody holds it, but
// its content is kept. Breaking a precondition is a bug and is checked.
class PagePool {
 public:
  explicit PagePool(int32_t page_count);

  // A free page, now held once. A freed page goes out again before a fresh one (it is warm); the
  // order can't be seen in any bit. Precondition: free_count() > 0.
  int32_t take();
  // One holder more, of a held or idle page.
  void share(int32_t page);
  // One holder less, of a held page; how many are left. With none the page is idle.
  int32_t drop(int32_t page);
  // An idle page is free again.
  void give_back(int32_t page);

  int32_t free_count() const { return static_cast<int32_t>(free_.size()); }
  int32_t page_count() const { return static_cast<int32_t>(holders_.size()); }
  int32_t holders(int32_t page) const { return holders_[static_cast<size_t>(page)]; }
  // Of each page; kFree for a free one.
  std::span<const int32_t> all_holders() const { return holders_; }
  static constexpr int32_t kFree = -1;

  // The free list names each free page, once. A broken rule is a bug (corrupt).
  Status check_integrity() const;

 private:
  std::vector<int32_t> free_;     // a stack
  std::vector<int32_t> holders_;  // of each page
};

}  // namespace exact
