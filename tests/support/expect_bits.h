// expect_bits.h owns the comparison that this project is about: equal bits, no tolerance. A failure
// names the first differing index, both values in hex, and how many differ.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <iomanip>
#include <span>
#include <sstream>
#include <string>

namespace exact {

template <class T>
std::string hex_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  std::ostringstream text;
  text << "0x" << std::hex << std::setw(2 * sizeof(T)) << std::setfill('0') << bits;
  return text.str();
}

template <class T>
testing::AssertionResult bits_equal(std::span<const T> got, std::span<const T> want) {
  if (got.size() != want.size())
    return testing::AssertionFailure() << got.size() << " values, expected " << want.size();
  size_t different = 0;
  size_t first = 0;
  for (size_t i = got.size(); i-- > 0;) {
    if (std::memcmp(&got[i], &want[i], sizeof(T)) == 0) continue;
    different++;
    first = i;
  }
  if (different == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << different << " of " << got.size() << " differ, first at index " << first << ": got "
         << hex_of(got[first]) << " (" << +got[first] << "), expected " << hex_of(want[first])
         << " (" << +want[first] << ")";
}

// Takes vectors and spans, of const or mutable elements.
template <class Got, class Want>
testing::AssertionResult ranges_have_equal_bits(const Got& got, const Want& want) {
  using T = std::remove_cvref_t<decltype(got[0])>;
  return bits_equal<T>(std::span<const T>(got), std::span<const T>(want));
}

}  // namespace exact

// `what`: the seed, the shape, the key - whatever it takes to see this failure again.
#define EXPECT_BITS_EQ(got, want, what) \
  EXPECT_TRUE(::exact::ranges_have_equal_bits((got), (want))) << (what)
#define ASSERT_BITS_EQ(got, want, what) \
  ASSERT_TRUE(::exact::ranges_have_equal_bits((got), (want))) << (what)
