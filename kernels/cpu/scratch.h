// scratch.h owns the backend's working memory: named blocks that grow to their high-water mark and
// stay, so that a steady state allocates nothing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace exact::cpu {

inline constexpr size_t kCacheLine = 64;

// A block of bytes at a multiple of 64. Its contents are lost when it grows.
class ScratchBlock {
 public:
  // Null when there is no memory.
  void* reserve(size_t bytes) {
    if (bytes <= bytes_) return data_.get();
    const size_t rounded = (bytes + bytes / 4 + kCacheLine - 1) / kCacheLine * kCacheLine;
    data_.reset(std::aligned_alloc(kCacheLine, rounded));
    bytes_ = data_ == nullptr ? 0 : rounded;
    return data_.get();
  }
  void* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

// Hands out aligned pieces of a block. First measure with a null base, then cut.
class ScratchCutter {
 public:
  explicit ScratchCutter(void* base) : base_(static_cast<std::byte*>(base)) {}

  template <class T>
  T* take(size_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace exact::cpu
