// kv_cache.h owns which page of the key/value cache belongs to which sequence. It moves no data.
// `can_reserve` asks, `reserve` acts.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/types.h"
#include "kernels/base/result.h"

namespace exact {

// Hands out pages 0 .. page_count - 1. A freed page goes out again before a fresh one (it is warm);
// the order can't be seen in any bit.
class PagePool {
 public:
  PagePool(int32_t page_count, int32_t page_size);

  // Whether `sequence` could hold `positions` positions, counting pages it has already.
  bool can_reserve(SequenceId sequence, int32_t positions) const;
  // Gives `sequence` enough pages for `positions`; checked: can_reserve said yes.
  void reserve(SequenceId sequence, int32_t positions);
  // Takes all pages back. A sequence without pages is fine.
  void release(SequenceId sequence);
  // Pages in order of position; empty for a sequence without pages. Valid until the next reserve or
  // release of this sequence.
  std::span<const int32_t> pages(SequenceId sequence) const;

  int32_t free_pages() const { return static_cast<int32_t>(free_.size()); }
  int32_t page_count() const { return page_count_; }
  int32_t page_size() const { return page_size_; }
  int32_t pages_for(int32_t positions) const { return (positions + page_size_ - 1) / page_size_; }

  // Every page is either free or belongs to one sequence, once. A broken rule is a bug (corrupt).
  Status check_integrity() const;

 private:
  int32_t page_count_;
  int32_t page_size_;
  std::vector<int32_t> free_;
  std::unordered_map<SequenceId, std::vector<int32_t>> owned_;
};

}  // namespace exact
