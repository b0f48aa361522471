// hash_init.h owns the integer hash from which weights and test inputs are rebuilt anywhere, with
// no stored data: value i of the stream (name, seed).
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/base/bf16.h"

namespace exact::contract {

class HashStream {
 public:
  HashStream(std::string_view name, uint64_t seed) : base_(fnv1a64(name) + seed * kGolden) {}

  // 24 uniform bits: splitmix64's finaliser of base + (i + 1) * golden ratio, its top 24.
  uint32_t bits24(uint64_t i) const {
    uint64_t z = base_ + (i + 1) * kGolden;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) >> 40);
  }

  // fp32(fp32(bits24 * 2^-24) * fp32(hi - lo)) + fp32(lo)
  float uniform(uint64_t i, double lo, double hi) const {
    const float unit = static_cast<float>(bits24(i)) * 0x1p-24f;
    const float scaled = unit * static_cast<float>(hi - lo);
    return scaled + static_cast<float>(lo);
  }

  uint16_t uniform_bf16(uint64_t i, double lo, double hi) const {
    return float_to_bf16(uniform(i, lo, hi));
  }

 private:
  static constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

  static constexpr uint64_t fnv1a64(std::string_view text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
    return hash;
  }

  uint64_t base_;
};

}  // namespace exact::contract
