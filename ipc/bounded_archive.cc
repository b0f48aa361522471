#include "ipc/bounded_archive.h"

namespace exact::ipc {
namespace {

constexpr size_t kPrintedNameBytes = 64;

bool is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

// A field name at the start of `bytes`, or empty when there is none.
std::string_view name_at(std::span<const std::byte> bytes) {
  const size_t length = bytes.empty() ? 0 : static_cast<size_t>(bytes[0]);
  if (length == 0 || length > bytes.size() - 1) return {};
  const std::string_view name(reinterpret_cast<const char*>(bytes.data() + 1), length);
  return std::all_of(name.begin(), name.end(), is_name_byte) ? name : std::string_view();
}

}  // namespace

std::string printable_name(std::string_view name) {
  std::string text(name.substr(0, kPrintedNameBytes));
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
  if (name.size() > kPrintedNameBytes) text += "...";
  return text;
}

void BodyReader::expect_name(std::string_view name) {
  field_ = name;
  const auto length = read_number<uint8_t>();
  const std::string_view found(reinterpret_cast<const char*>(take(length)), length);
  if (found == name) return;
  throw DecodeError(Code::invalid, "unknown field '" + printable_name(found) + "' where '" +
                                       std::string(name) +
                                       "' belongs: send the fields of this protocol version, in "
                                       "order");
}

void BodyReader::expect_end() const {
  if (remaining() == 0) return;
  const std::string_view name = name_at(body_.subspan(position_));
  if (!name.empty()) {
    throw DecodeError(Code::invalid, "unknown field '" + printable_name(name) +
                                         "' after the last field: send the fields of this protocol "
                                         "version, and no more");
  }
  throw DecodeError(Code::corrupt, std::to_string(remaining()) +
                                       " bytes after the last field: the body must end with it");
}

void BodyReader::fail_truncated(size_t wanted_bytes) const {
  throw DecodeError(Code::corrupt, "the body ends inside field '" + std::string(field_) +
                                       "': " + std::to_string(wanted_bytes) +
                                       " bytes belong at byte " + std::to_string(position_) +
                                       " of " + std::to_string(body_.size()));
}

void BodyReader::fail_count(uint64_t count) const {
  throw DecodeError(Code::corrupt, "field '" + std::string(field_) + "' claims " +
                                       std::to_string(count) + " elements, but only " +
                                       std::to_string(remaining()) + " bytes follow");
}

void BodyReader::fail_struct_count(uint64_t count) const {
  throw DecodeError(Code::invalid, "field '" + std::string(field_) + "' has " +
                                       std::to_string(count) + " elements, the limit is " +
                                       std::to_string(kMaxStructs));
}

void BodyReader::fail_bool(unsigned value) const {
  throw DecodeError(Code::corrupt, "field '" + std::string(field_) + "' is a truth value of " +
                                       std::to_string(value) + ": it must be 0 or 1");
}

void BodyReader::fail_depth() const {
  throw DecodeError(Code::corrupt, "field '" + std::string(field_) + "' nests deeper than " +
                                       std::to_string(kMaxDepth) + " levels");
}

}  // namespace exact::ipc
