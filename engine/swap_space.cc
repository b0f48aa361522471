#include "engine/swap_space.h"

#include <algorithm>
#include <string>

namespace exact {

SwapSpace::SwapSpace(int64_t bytes, size_t page_bytes)
    : page_bytes_(page_bytes),
      slot_count_(static_cast<int32_t>(
          std::min<int64_t>(bytes / static_cast<int64_t>(page_bytes), INT32_MAX))) {
  if (slot_count_ == 0) return;
  memory_ =
      std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(slot_count_) * page_bytes_);
  free_.reserve(static_cast<size_t>(slot_count_));
  for (int32_t slot = slot_count_ - 1; slot >= 0; slot--) free_.push_back(slot);
}

void SwapSpace::take(int32_t count, std::vector<int32_t>& out) {
  EXACT_CHECK(count <= free_count(), "more swap slots than there are");
  for (int32_t i = 0; i < count; i++) {
    out.push_back(free_.back());
    free_.pop_back();
  }
}

void SwapSpace::release(std::vector<int32_t>& slots) {
  free_.insert(free_.end(), slots.rbegin(), slots.rend());
  slots.clear();
}

std::span<std::byte> SwapSpace::slot(int32_t index) {
  EXACT_CHECK(index >= 0 && index < slot_count_, "a slot outside the swap space");
  return {memory_.get() + static_cast<size_t>(index) * page_bytes_, page_bytes_};
}

Status SwapSpace::check_integrity(std::span<const std::vector<int32_t>* const> taken) const {
  std::vector<int32_t> all = free_;
  for (const std::vector<int32_t>* slots : taken)
    all.insert(all.end(), slots->begin(), slots->end());
  std::ranges::sort(all);
  for (size_t i = 0; i < all.size(); i++) {
    if (all[i] != static_cast<int32_t>(i)) {
      return Status(Code::corrupt, "swap slot " + std::to_string(i) + " is lost or used twice");
    }
  }
  if (all.size() != static_cast<size_t>(slot_count_)) {
    return Status(Code::corrupt, std::to_string(all.size()) + " swap slots are known of " +
                                     std::to_string(slot_count_));
  }
  return {};
}

}  // namespace exact
