#include "tests/engine/allocations.h"

#include <cstdlib>
#include <new>

namespace exact {
namespace {
thread_local uint64_t count = 0;
}  // namespace

uint64_t allocation_count() {
  return count;
}

static void* allocate_or_null(std::size_t bytes) {
  count++;
  return std::malloc(bytes > 0 ? bytes : 1);
}

static void* allocate(std::size_t bytes) {
  void* memory = allocate_or_null(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace exact

void* operator new(std::size_t bytes) {
  return exact::allocate(bytes);
}
void* operator new[](std::size_t bytes) {
  return exact::allocate(bytes);
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return exact::allocate_or_null(bytes);
}
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return exact::allocate_or_null(bytes);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}
