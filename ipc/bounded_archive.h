// bounded_archive.h owns the encoding of a message's body (codec.h describes it): two cereal
// archives that write and read the fields named by a serialize(). Not cereal's own binary archives:
// those believe any length they read, so nine bytes could make them allocate 2 GiB.
//
// The reader refuses, by throwing DecodeError, whatever does not fit the bytes that came: a count
// is checked before anything is allocated for it. codec.cc catches; no exception leaves ipc.
#pragma once

#include <algorithm>
#include <bit>
#include <cereal/cereal.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/result.h"

namespace exact::ipc {

static_assert(std::endian::native == std::endian::little, "bodies are little-endian in memory too");

inline constexpr uint64_t kMaxStructs = 1u << 16;  // in one vector
inline constexpr int kMaxDepth = 8;                // of vectors of structs within each other
inline constexpr size_t kMaxFieldNameBytes = 255;  // its length is one byte

class DecodeError : public std::runtime_error {
 public:
  DecodeError(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

// A name that came over the wire, made fit for a log line.
std::string printable_name(std::string_view name);

template <class T>
concept WireNumber = std::is_arithmetic_v<T> && sizeof(T) <= 8;

// ---- writing

class BodyWriter : public cereal::OutputArchive<BodyWriter> {
 public:
  explicit BodyWriter(std::string& body) : cereal::OutputArchive<BodyWriter>(this), body_(body) {}

  void write_bytes(const void* data, size_t bytes) {
    if (bytes > 0) body_.append(static_cast<const char*>(data), bytes);
  }
  template <WireNumber T>
  void write_number(T value) {
    if constexpr (std::is_same_v<T, bool>) {
      write_number<uint8_t>(value ? 1 : 0);
    } else {
      write_bytes(&value, sizeof(value));
    }
  }
  void write_name(std::string_view name) {
    EXACT_CHECK(name.size() <= kMaxFieldNameBytes, "a field name too long for the wire");
    write_number(static_cast<uint8_t>(name.size()));
    write_bytes(name.data(), name.size());
  }

 private:
  std::string& body_;
};

template <WireNumber T>
void save(BodyWriter& writer, const T& value) {
  writer.write_number(value);
}

inline void save(BodyWriter& writer, const std::string& text) {
  writer.write_number(static_cast<uint64_t>(text.size()));
  writer.write_bytes(text.data(), text.size());
}

template <class T>
void save(BodyWriter& writer, const std::vector<T>& values) {
  static_assert(!std::is_same_v<T, bool>, "std::vector<bool> has no elements to point at");
  writer.write_number(static_cast<uint64_t>(values.size()));
  if constexpr (WireNumber<T>) {
    writer.write_bytes(values.data(), values.size() * sizeof(T));
  } else {
    for (const T& value : values) writer(value);
  }
}

template <class T>
void save(BodyWriter& writer, const cereal::NameValuePair<T>& field) {
  writer.write_name(field.name);
  writer(field.value);
}

// ---- reading

class BodyReader : public cereal::InputArchive<BodyReader> {
 public:
  explicit BodyReader(std::span<const std::byte> body)
      : cereal::InputArchive<BodyReader>(this), body_(body) {}

  size_t remaining() const { return body_.size() - position_; }

  template <WireNumber T>
  T read_number() {
    if constexpr (std::is_same_v<T, bool>) {
      const auto value = read_number<uint8_t>();
      if (value > 1) fail_bool(value);
      return value == 1;
    } else {
      T value;
      std::memcpy(&value, take(sizeof(T)), sizeof(T));
      return value;
    }
  }
  // A count of elements that take at least `element_bytes` each.
  uint64_t read_count(size_t element_bytes) {
    const auto count = read_number<uint64_t>();
    if (count > remaining() / element_bytes) fail_count(count);
    return count;
  }
  uint64_t read_struct_count() {
    const uint64_t count = read_count(1);
    if (count > kMaxStructs) fail_struct_count(count);
    return count;
  }
  // The next `bytes` bytes of the body, which stay the body's.
  const std::byte* take(size_t bytes) {
    if (bytes > remaining()) fail_truncated(bytes);
    const std::byte* data = body_.data() + position_;
    position_ += bytes;
    return data;
  }

  void expect_name(std::string_view name);
  void expect_end() const;  // nothing is left after the last field

  void enter() {
    if (++depth_ > kMaxDepth) fail_depth();
  }
  void leave() { --depth_; }

 private:
  [[noreturn]] void fail_truncated(size_t wanted_bytes) const;
  [[noreturn]] void fail_count(uint64_t count) const;
  [[noreturn]] void fail_struct_count(uint64_t count) const;
  [[noreturn]] void fail_bool(unsigned value) const;
  [[noreturn]] void fail_depth() const;

  std::span<const std::byte> body_;
  size_t position_ = 0;
  int depth_ = 0;
  std::string_view field_;  // the field being read, for messages; a serialize()'s literal
};

template <WireNumber T>
void load(BodyReader& reader, T& value) {
  value = reader.read_number<T>();
}

inline void load(BodyReader& reader, std::string& text) {
  const auto bytes = static_cast<size_t>(reader.read_count(1));
  text.assign(reinterpret_cast<const char*>(reader.take(bytes)), bytes);
}

template <class T>
void load(BodyReader& reader, std::vector<T>& values) {
  static_assert(!std::is_same_v<T, bool>, "std::vector<bool> has no elements to point at");
  values.clear();
  if constexpr (WireNumber<T>) {
    const auto count = static_cast<size_t>(reader.read_count(sizeof(T)));
    values.resize(count);
    const std::byte* bytes = reader.take(count * sizeof(T));
    if (count > 0) std::memcpy(values.data(), bytes, count * sizeof(T));
  } else {
    // Grown one by one: a struct in memory can be larger than the one byte its count was held to.
    const uint64_t count = reader.read_struct_count();
    reader.enter();
    for (uint64_t index = 0; index < count; ++index) reader(values.emplace_back());
    reader.leave();
  }
}

template <class T>
void load(BodyReader& reader, cereal::NameValuePair<T>& field) {
  reader.expect_name(field.name);
  reader(field.value);
}

}  // namespace exact::ipc

CEREAL_SETUP_ARCHIVE_TRAITS(exact::ipc::BodyReader, exact::ipc::BodyWriter)
