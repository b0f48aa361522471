// random_data.h owns the one generator of random and adversarial test data. The seed is fixed
// unless EXACT_TEST_SEED says otherwise; a failing test prints it through describe().
#pragma once

#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

namespace exact {

enum class DataKind : uint8_t {
  normal,          // what activations and weights look like
  wide_exponents,  // normal times 2^-30 ... 2^29
  any_bits,        // NaN, infinities, subnormals, both zeros
  tiny,            // subnormals, zeros and the smallest normals
  cancellation,    // pairs that nearly cancel
  largest,         // +-1.9921875 alone: sums grow as fast as they can
  all_ones,        // a dropped tail of a sum shows
  sparse,          // half of it zeros
};

inline constexpr DataKind kAllDataKinds[] = {
    DataKind::normal,       DataKind::wide_exponents, DataKind::any_bits, DataKind::tiny,
    DataKind::cancellation, DataKind::largest,        DataKind::all_ones, DataKind::sparse};
// The kinds without NaN and infinity.
inline constexpr DataKind kFiniteDataKinds[] = {
    DataKind::normal,       DataKind::wide_exponents, DataKind::tiny,  DataKind::largest,
    DataKind::cancellation, DataKind::all_ones,       DataKind::sparse};

std::string_view data_kind_name(DataKind kind);

// EXACT_TEST_SEED, or 1.
uint64_t test_seed();

class RandomData {
 public:
  explicit RandomData(uint64_t seed = test_seed()) : seed_(seed), state_(seed) {}

  uint64_t bits();                             // splitmix64
  int64_t between(int64_t low, int64_t high);  // both included
  float normal();                              // about N(0, 1): a sum of twelve uniforms
  uint16_t bf16(DataKind kind);
  std::vector<uint16_t> bf16s(DataKind kind, size_t count);
  // One of an array's or a container's elements.
  template <class Choices>
  const auto& pick(const Choices& choices) {
    return choices[static_cast<size_t>(between(0, static_cast<int64_t>(std::size(choices)) - 1))];
  }

  uint64_t seed() const { return seed_; }
  std::string describe() const { return "EXACT_TEST_SEED=" + std::to_string(seed_); }

 private:
  uint64_t seed_;
  uint64_t state_;
  uint16_t previous_ = 0;  // what a cancelling value follows
};

}  // namespace exact
