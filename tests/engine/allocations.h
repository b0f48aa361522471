// allocations.h counts what this test program takes from the heap. allocations.cc replaces operator
// new for the whole program.
#pragma once

#include <cstdint>

namespace exact {

// How often the calling thread has called operator new, ever.
uint64_t allocation_count();

}  // namespace exact
