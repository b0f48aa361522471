#include "engine/prefix_index.h"

#include <algorithm>
#include <bit>
#include <string>

#include "kernels/base/digest.h"

namespace exact {

PrefixIndex::PrefixIndex(int32_t page_count, int32_t page_size, uint64_t hash_mask)
    : page_size_(static_cast<size_t>(page_size)), hash_mask_(hash_mask) {
  const auto pages = static_cast<size_t>(page_count);
  entries_.resize(pages);
  ids_.resize(pages * page_size_);
  buckets_.assign(std::bit_ceil(pages), -1);
}

uint64_t PrefixIndex::hash_of(PrefixNode before, std::span<const int32_t> block) const {
  // An odd multiplier spreads the numbers of the texts before.
  return (digest64(std::as_bytes(block)) ^ (before * 0x9E3779B97F4A7C15u)) & hash_mask_;
}

std::span<const int32_t> PrefixIndex::block_of(int32_t page) const {
  return std::span(ids_).subspan(static_cast<size_t>(page) * page_size_, page_size_);
}

int32_t PrefixIndex::find(PrefixNode before, std::span<const int32_t> block) const {
  EXACT_CHECK(block.size() == page_size_, "a block is a page of ids");
  const uint64_t hash = hash_of(before, block);
  for (int32_t page = bucket(hash); page >= 0;) {
    const Entry& entry = entries_[static_cast<size_t>(page)];
    if (entry.hash == hash && entry.before == before && std::ranges::equal(block_of(page), block)) {
      return page;
    }
    page = entry.next_in_bucket;
  }
  return -1;
}

PrefixNode PrefixIndex::insert(PrefixNode before, std::span<const int32_t> block, int32_t page) {
  Entry& entry = entries_[static_cast<size_t>(page)];
  EXACT_CHECK(entry.node == 0, "a page is in the index already");
  entry.node = ++last_node_;
  entry.before = before;
  entry.hash = hash_of(before, block);
  entry.next_in_bucket = bucket(entry.hash);
  bucket(entry.hash) = page;
  std::ranges::copy(block, ids_.begin() + static_cast<std::ptrdiff_t>(page) *
                                              static_cast<std::ptrdiff_t>(page_size_));
  return entry.node;
}

void PrefixIndex::erase(int32_t page) {
  Entry& entry = entries_[static_cast<size_t>(page)];
  EXACT_CHECK(entry.node != 0, "a page that is not in the index");
  if (entry.idle) set_held(page);
  int32_t* link = &bucket(entry.hash);
  while (*link != page) link = &entries_[static_cast<size_t>(*link)].next_in_bucket;
  *link = entry.next_in_bucket;
  entry = Entry();
}

void PrefixIndex::set_idle(int32_t page) {
  Entry& entry = entries_[static_cast<size_t>(page)];
  EXACT_CHECK(entry.node != 0 && !entry.idle, "an idle page, or one that is not in the index");
  entry.idle = true;
  entry.older = newest_;
  (newest_ < 0 ? oldest_ : entries_[static_cast<size_t>(newest_)].newer) = page;
  newest_ = page;
  idle_count_++;
}

void PrefixIndex::set_held(int32_t page) {
  Entry& entry = entries_[static_cast<size_t>(page)];
  EXACT_CHECK(entry.idle, "a page that is not idle");
  (entry.older < 0 ? oldest_ : entries_[static_cast<size_t>(entry.older)].newer) = entry.newer;
  (entry.newer < 0 ? newest_ : entries_[static_cast<size_t>(entry.newer)].older) = entry.older;
  entry.idle = false;
  entry.older = entry.newer = -1;
  idle_count_--;
}

Status PrefixIndex::check_integrity(std::span<const int32_t> holders) const {
  const auto broken = [](int32_t page, const char* what) {
    return Status(Code::corrupt, "page " + std::to_string(page) + " of the prefix index " + what);
  };
  int32_t idle = 0;
  for (int32_t page = 0; page < static_cast<int32_t>(entries_.size()); page++) {
    const Entry& entry = entries_[static_cast<size_t>(page)];
    const int32_t held_by = holders[static_cast<size_t>(page)];
    if (entry.node == 0) {
      if (held_by == 0) return broken(page, "is idle and not in it");
      continue;
    }
    if (held_by < 0) return broken(page, "is free");
    if (entry.idle != (held_by == 0)) return broken(page, "does not know whether it is held");
    if (find(entry.before, block_of(page)) != page) return broken(page, "can't be found");
    idle += entry.idle;
  }
  int32_t listed = 0;
  for (int32_t page = oldest_; page >= 0; page = entries_[static_cast<size_t>(page)].newer) {
    if (!entries_[static_cast<size_t>(page)].idle || ++listed > idle) {
      return broken(page, "stands wrongly among the idle ones");
    }
  }
  if (listed != idle || idle != idle_count_) return broken(oldest_, "miscounts the idle ones");
  return {};
}

}  // namespace exact
