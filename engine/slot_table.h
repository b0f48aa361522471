// slot_table.h owns things that have a small stable number: found by it without a search, at an
// address that stays. A number is used again when its thing is gone.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/base/check.h"

namespace exact {

template <class T>
class SlotTable {
 public:
  int32_t add() {
    if (free_.empty()) {
      free_.push_back(static_cast<int32_t>(slots_.size()));
      slots_.emplace_back();
    }
    const int32_t slot = free_.back();
    free_.pop_back();
    slots_[static_cast<size_t>(slot)] = std::make_unique<T>();
    count_++;
    return slot;
  }

  void remove(int32_t slot) {
    EXACT_CHECK(has(slot), "a slot that is empty");
    slots_[static_cast<size_t>(slot)].reset();
    free_.push_back(slot);
    count_--;
  }

  T& operator[](int32_t slot) { return *slots_[static_cast<size_t>(slot)]; }
  const T& operator[](int32_t slot) const { return *slots_[static_cast<size_t>(slot)]; }
  bool has(int32_t slot) const { return slots_[static_cast<size_t>(slot)] != nullptr; }

  int32_t end() const { return static_cast<int32_t>(slots_.size()); }  // every number is below
  int32_t count() const { return count_; }
  bool empty() const { return count_ == 0; }

 private:
  std::vector<std::unique_ptr<T>> slots_;
  std::vector<int32_t> free_;
  int32_t count_ = 0;
};

}  // namespace exact
