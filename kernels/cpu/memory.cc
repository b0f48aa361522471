#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "kernels/cpu/scratch.h"

namespace exact::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = 2 * kHugePage;
constexpr size_t kMostBytes = SIZE_MAX / 2;

Status no_room(size_t bytes) {
  return Status(Code::exhausted, "no room for " + std::to_string(bytes) +
                                     " bytes on the CPU: lower the limits, or free memory");
}

std::byte* align_up(void* address, size_t alignment) {
  const auto value = reinterpret_cast<uintptr_t>(address);
  return static_cast<std::byte*>(address) + (alignment - value % alignment) % alignment;
}

Result<Buffer> allocate_small(size_t bytes) {
  void* base = std::calloc(1, bytes + kCacheLine);
  if (base == nullptr) return no_room(bytes);
  return Buffer(align_up(base, kCacheLine), bytes, [base](void*) { std::free(base); });
}

// Untouched pages take no memory until they are used.
Result<Buffer> allocate_large(size_t bytes) {
  const size_t mapped = bytes + kHugePage;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return no_room(bytes);
  madvise(base, mapped, MADV_HUGEPAGE);  // advice: small pages do as well, only slower
  return Buffer(align_up(base, kHugePage), bytes, [base, mapped](void*) { munmap(base, mapped); });
}

}  // namespace

Result<Buffer> allocate_zeroed(size_t bytes) {
  if (bytes > kMostBytes) return no_room(bytes);
  return bytes < kLarge ? allocate_small(bytes) : allocate_large(bytes);
}

}  // namespace exact::cpu
