// random.h owns the randomness of these tests: splitmix64, so that a seed means the same
// everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace exact::ipc {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // In [0, bound); bound is not 0.
  uint64_t below(uint64_t bound) { return next() % bound; }
  std::string bytes(size_t count) {
    std::string text(count, '\0');
    for (char& c : text) c = static_cast<char>(next());
    return text;
  }

 private:
  uint64_t state_;
};

}  // namespace exact::ipc
