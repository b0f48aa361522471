// random_choices.h owns the small draws that random requests are made of.
#pragma once

#include <cstdint>

#include "tests/support/random_data.h"

namespace exact {

// Both included.
inline int32_t between(RandomData& random, int64_t low, int64_t high) {
  return static_cast<int32_t>(random.between(low, high));
}

inline bool one_in(RandomData& random, int64_t count) {
  return random.between(1, count) == 1;
}

}  // namespace exact
