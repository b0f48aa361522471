// raw_numbers.h owns numbers at fixed places of a header, little-endian as in memory: those of the
// wire's and of the journal's frames.
#pragma once

#include <bit>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>

namespace exact::ipc {

static_assert(std::endian::native == std::endian::little,
              "headers are little-endian in memory too");

template <class T>
void put_number(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// `bytes` has at least offset + sizeof(T).
template <class T>
T get_number(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

}  // namespace exact::ipc
