// kv_cache.h owns which pages hold the keys and values of which sequence: shared, copied before a
// write, found again by their text, evicted when pages are needed. It moves no data; whoever asks
// for a copy makes it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/page_pool.h"
#include "engine/prefix_index.h"

namespace exact {

// The pages of one sequence, in order of position, and how far the index knows its text.
struct PageList {
  std::vector<int32_t> pages;
  int32_t published_pages = 0;  // its first ones, whose text the index has seen
  PrefixNode published = 0;     // that text
};

struct PageCopy {
  int32_t from = 0, to = 0;
};

class KvPages {
 public:
  // Without `reuse` nothing is published or found, and a released page is free at once.
  KvPages(int32_t page_count, int32_t page_size, bool reuse, uint64_t hash_mask = UINT64_MAX);

  // Pages that can be taken: free ones, and idle ones that are evicted then, longest idle first.
  int32_t available() const { return pool_.free_count() + index_.idle_count(); }
  int32_t page_count() const { return pool_.page_count(); }
  int32_t page_size() const { return page_size_; }
  int32_t pages_for(int32_t positions) const { return (positions + page_size_ - 1) / page_size_; }
  std::span<const int32_t> holders() const { return pool_.all_holders(); }

  // The longest run of whole pages that hold the first ids of `text`, into `pages` (overwritten).
  // Changes nothing.
  void find(std::span<const int32_t> text, std::vector<int32_t>& pages) const;
  // An empty list gets what find() found just now.
  void adopt(std::span<const int32_t> found, PageList& list);
  // An empty list gets the pages of `from`, all of them shared.
  void fork(const PageList& from, PageList& list);
  // Takes pages until the list holds `positions`. Precondition: they are available.
  void grow(PageList& list, int32_t positions);
  // Whether writing at `position`, which the list holds, needs a copy: another holds the page too.
  bool is_shared(const PageList& list, int32_t position) const;
  // Puts a page of its own there; what the old one holds is to be copied before the next write.
  PageCopy unshare(PageList& list, int32_t position);
  // Lets go of all of them, the last first: the beginning of a text is worth more.
  void release(PageList& list);
  // Tells the index of the pages that are full: text[0, computed) is what the list holds.
  void publish(PageList& list, std::span<const int32_t> text, int32_t computed);
  // Forgets every text: idle pages are free, and held ones are found by nobody. Lists that are not
  // released before must not be published any more.
  void forget_texts();

  uint64_t evictions() const { return evictions_; }

  // Pool and index are whole, and each page has as many holders as lists name it. `lists`: all.
  Status check_integrity(std::span<const PageList* const> lists) const;

 private:
  int32_t take();

  int32_t page_size_;
  bool reuse_;
  PagePool pool_;
  PrefixIndex index_;
  uint64_t evictions_ = 0;
};

}  // namespace exact
