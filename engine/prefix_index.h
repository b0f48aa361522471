// prefix_index.h owns what the full pages of the cache hold: which block of token ids, after which
// blocks before it. A block is found by a hash and taken by an exact compare of its ids: a hash
// alone never decides. It also orders the pages that nobody holds by when they were last held.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/result.h"

namespace exact {

// A text of whole blocks that is, or was, in the index; no two texts ever share a number, and none
// is given out twice. 0 is the empty text.
using PrefixNode = uint64_t;

// All memory is taken at the start; no operation allocates. A page of an older text can be gone
// while later blocks of it are still here: they can't be found any more, and go in their turn.
class PrefixIndex {
 public:
  // `hash_mask` is for tests: fewer bits, more collisions.
  PrefixIndex(int32_t page_count, int32_t page_size, uint64_t hash_mask = UINT64_MAX);

  // The page of the block that follows `before`; -1: not here. `block` is page_size ids.
  int32_t find(PrefixNode before, std::span<const int32_t> block) const;
  // The text that ends with this page; 0: the page is not in the index.
  PrefixNode node(int32_t page) const { return entries_[static_cast<size_t>(page)].node; }
  // Precondition: neither the block nor the page is in the index.
  PrefixNode insert(PrefixNode before, std::span<const int32_t> block, int32_t page);
  void erase(int32_t page);

  // Whether nobody holds an indexed page: then it may be evicted, longest idle first.
  void set_idle(int32_t page);
  void set_held(int32_t page);
  int32_t idle_count() const { return idle_count_; }
  int32_t longest_idle() const { return oldest_; }  // -1: none

  // Chains and lists are whole; `holders` is the pool's. A broken rule is a bug (corrupt).
  Status check_integrity(std::span<const int32_t> holders) const;

 private:
  struct Entry {
    PrefixNode node = 0, before = 0;
    uint64_t hash = 0;
    int32_t next_in_bucket = -1;
    int32_t older = -1, newer = -1;  // among idle pages
    bool idle = false;
  };

  uint64_t hash_of(PrefixNode before, std::span<const int32_t> block) const;
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  int32_t bucket(uint64_t hash) const { return buckets_[hash & (buckets_.size() - 1)]; }
  std::span<const int32_t> block_of(int32_t page) const;

  size_t page_size_;
  uint64_t hash_mask_;
  std::vector<Entry> entries_;    // of each page
  std::vector<int32_t> ids_;      // of each page, page_size of them
  std::vector<int32_t> buckets_;  // the first page of each; a power of two
  int32_t oldest_ = -1, newest_ = -1;
  int32_t idle_count_ = 0;
  PrefixNode last_node_ = 0;
};

}  // namespace exact
