// swap_space.h owns host memory for the pages of preempted sequences: which part is whose, not how
// bytes get there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/result.h"

namespace exact {

// Slots 0 .. slot_count - 1, each of page_bytes. Taken at the start, touched when used.
class SwapSpace {
 public:
  SwapSpace(int64_t bytes, size_t page_bytes);

  // Appends `count` slots to `out`. Precondition: free_count() >= count.
  void take(int32_t count, std::vector<int32_t>& out);
  // Gives them back and clears the list.
  void release(std::vector<int32_t>& slots);
  std::span<std::byte> slot(int32_t index);

  int32_t free_count() const { return static_cast<int32_t>(free_.size()); }
  int32_t slot_count() const { return slot_count_; }

  // Every slot is free or in one of these lists, once. A broken rule is a bug (corrupt).
  Status check_integrity(std::span<const std::vector<int32_t>* const> taken) const;

 private:
  size_t page_bytes_;
  int32_t slot_count_;
  std::unique_ptr<std::byte[]> memory_;
  std::vector<int32_t> free_;  // a stack
};

}  // namespace exact
