// safetensors_header.h owns the header of a safetensors file: JSON to checked entries and back. A
// file from anywhere may be parsed; memory is bounded by a small multiple of the header's own size.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/result.h"

namespace exact {

constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // upstream's own limit
constexpr size_t kMaxSafetensorsDimensions = 16;

struct SafetensorsHeaderEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // into the data section
  uint64_t end = 0;
};

using SafetensorsHeader = std::map<std::string, SafetensorsHeaderEntry, std::less<>>;

// Bytes of one element; nothing for a dtype that is not known or is smaller than a byte.
std::optional<uint64_t> safetensors_dtype_bytes(std::string_view dtype);
// Bytes of a tensor; nothing when a dimension is negative or the product overflows.
std::optional<uint64_t> safetensors_tensor_bytes(std::string_view dtype,
                                                 std::span<const int64_t> shape);

// corrupt: not JSON, a field missing, unknown, twice or of a wrong type, a size that is not its
// shape's, or tensors that do not tile the `data_bytes` of data exactly.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, uint64_t data_bytes);

// A tensor to be written.
struct SafetensorsDeclaration {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
};

// The file's first bytes (length and padded JSON), and the order in which the tensors' bytes
// follow: wide elements first, which keeps each aligned, then ascending names. invalid: a name
// twice or not UTF-8, an unknown dtype, or a shape whose size overflows.
struct SafetensorsPreamble {
  std::string bytes;
  std::vector<size_t> order;
};
Result<SafetensorsPreamble> make_safetensors_preamble(
    std::span<const SafetensorsDeclaration> tensors);

}  // namespace exact
