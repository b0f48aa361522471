// hex.h owns bytes as text: two lower-case hexadecimal digits each, in their order.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace exact {

inline std::string hex_text(std::span<const std::byte> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (const std::byte byte : bytes) {
    text += kDigits[std::to_integer<unsigned>(byte) >> 4];
    text += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

}  // namespace exact
