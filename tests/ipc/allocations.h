// allocations.h counts what this test program takes from the heap, so that "allocates no more than"
// can be tested. allocations.cc replaces operator new for the whole program.
#pragma once

#include <cstdint>

namespace exact::ipc {

// Bytes that the calling thread has asked operator new for, ever; frees are not subtracted.
uint64_t allocated_bytes();

}  // namespace exact::ipc
