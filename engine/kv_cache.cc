#include "engine/kv_cache.h"

#include <string>

namespace exact {

PagePool::PagePool(int32_t page_count, int32_t page_size)
    : page_count_(page_count), page_size_(page_size) {
  EXACT_CHECK(page_count > 0 && page_size > 0, "a pool needs pages");
  free_.reserve(static_cast<size_t>(page_count));
  // The pool is a stack: what was freed last goes out first, and fresh pages in ascending order.
  for (int32_t page = page_count - 1; page >= 0; page--) free_.push_back(page);
}

bool PagePool::can_reserve(SequenceId sequence, int32_t positions) const {
  return pages_for(positions) - static_cast<int32_t>(pages(sequence).size()) <= free_pages();
}

void PagePool::reserve(SequenceId sequence, int32_t positions) {
  EXACT_CHECK(positions >= 0, "a negative number of positions");
  EXACT_CHECK(can_reserve(sequence, positions), "reserve without can_reserve");
  const auto needed = static_cast<size_t>(pages_for(positions));
  if (needed == 0) return;
  std::vector<int32_t>& owned = owned_[sequence];
  while (owned.size() < needed) {
    owned.push_back(free_.back());
    free_.pop_back();
  }
}

void PagePool::release(SequenceId sequence) {
  const auto found = owned_.find(sequence);
  if (found == owned_.end()) return;
  free_.insert(free_.end(), found->second.rbegin(), found->second.rend());
  owned_.erase(found);
}

std::span<const int32_t> PagePool::pages(SequenceId sequence) const {
  const auto found = owned_.find(sequence);
  return found == owned_.end() ? std::span<const int32_t>() : found->second;
}

Status PagePool::check_integrity() const {
  constexpr uint64_t kFree = UINT64_MAX;
  std::vector<bool> seen(static_cast<size_t>(page_count_));
  const auto holder_name = [](uint64_t holder) {
    return holder == kFree ? std::string("the free list") : "sequence " + std::to_string(holder);
  };
  const auto visit = [&](int32_t page, uint64_t holder) {
    if (page < 0 || page >= page_count_) {
      return Status(Code::corrupt, holder_name(holder) + " has page " + std::to_string(page) +
                                       " of a pool of " + std::to_string(page_count_));
    }
    if (seen[static_cast<size_t>(page)]) {
      return Status(Code::corrupt, "page " + std::to_string(page) +
                                       " is held twice, the second time by " + holder_name(holder));
    }
    seen[static_cast<size_t>(page)] = true;
    return Status();
  };
  for (const int32_t page : free_) EXACT_RETURN_IF_ERROR(visit(page, kFree));
  for (const auto& [sequence, pages] : owned_) {
    for (const int32_t page : pages) EXACT_RETURN_IF_ERROR(visit(page, sequence.value));
  }
  for (int32_t page = 0; page < page_count_; page++) {
    if (!seen[static_cast<size_t>(page)]) {
      return Status(Code::corrupt, "page " + std::to_string(page) + " is lost");
    }
  }
  return {};
}

}  // namespace exact
