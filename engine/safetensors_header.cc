#include "engine/safetensors_header.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

namespace exact {
namespace {

using Json = nlohmann::json;

// Receives the parser's events and builds the entries; no document is ever held. Depth 1 has the
// names, depth 2 a tensor's fields (or the strings of __metadata__), depth 3 its two lists.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  SafetensorsHeader take() { return std::move(header_); }
  const std::string& error() const { return error_; }

  bool start_object(size_t) override {
    depth_++;
    if (depth_ == 1) return true;
    if (depth_ > 2) return fail("an object where a value belongs");
    if (!in_metadata_) entry_ = {};
    seen_.clear();
    return true;
  }
  bool end_object() override {
    depth_--;
    if (depth_ == 0) return true;
    if (std::exchange(in_metadata_, false)) return true;
    if (seen_.size() != 3) return fail("'dtype', 'shape' or 'data_offsets' is missing");
    header_.emplace(std::move(name_), std::move(entry_));
    return true;
  }
  bool key(string_t& key) override {
    if (depth_ == 1) {
      name_ = std::move(key);
      in_metadata_ = name_ == "__metadata__";
      if (in_metadata_ && std::exchange(has_metadata_, true)) return fail("it is there twice");
      return header_.contains(name_) ? fail("it is there twice") : true;
    }
    if (!in_metadata_ && key != "dtype" && key != "shape" && key != "data_offsets") {
      return fail("it has an unknown field");
    }
    if (!seen_.insert(key).second) return fail("a field is there twice");
    field_ = std::move(key);
    return true;
  }
  bool string(string_t& value) override {
    if (depth_ != 2 || in_array_) return fail("a string where none belongs");
    if (in_metadata_) return true;
    if (field_ != "dtype") return fail("a string where a list belongs");
    entry_.dtype = std::move(value);
    return true;
  }
  bool start_array(size_t) override {
    const bool is_list = field_ == "shape" || field_ == "data_offsets";
    if (depth_ != 2 || in_metadata_ || in_array_ || !is_list)
      return fail("a list where none belongs");
    in_array_ = true;
    offset_count_ = 0;
    return true;
  }
  bool end_array() override {
    in_array_ = false;
    if (field_ == "data_offsets" && offset_count_ != 2)
      return fail("'data_offsets' needs two numbers");
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) return fail("a number where none belongs");
    if (field_ == "data_offsets") {
      if (offset_count_ == 2) return fail("'data_offsets' needs two numbers");
      (offset_count_++ == 0 ? entry_.begin : entry_.end) = value;
      return true;
    }
    if (value > INT64_MAX) return fail("a dimension is too large");
    if (entry_.shape.size() == kMaxSafetensorsDimensions) return fail("it has too many dimensions");
    entry_.shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool number_integer(number_integer_t) override { return fail("a number is negative"); }
  bool number_float(number_float_t, const string_t&) override {
    return fail("a number is not an integer");
  }
  bool null() override { return fail("a null where a value belongs"); }
  bool boolean(bool) override { return fail("a boolean where a value belongs"); }
  bool binary(binary_t&) override { return fail("binary where text belongs"); }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    error_ = "its header is not JSON at byte " + std::to_string(position);
    return false;
  }

 private:
  bool fail(const char* what) {
    error_ = depth_ == 0 ? "its header is not a JSON object"
                         : "tensor '" + name_.substr(0, 200) + "': " + what;
    return false;
  }

  SafetensorsHeader header_;
  std::string error_;
  std::string name_, field_;
  SafetensorsHeaderEntry entry_;
  std::set<std::string, std::less<>> seen_;
  int depth_ = 0;
  int offset_count_ = 0;
  bool in_metadata_ = false, has_metadata_ = false, in_array_ = false;
};

Status tensor_error(const std::string& name, const std::string& what) {
  return {Code::corrupt, "tensor '" + name.substr(0, 200) + "': " + what};
}

// Every byte of the data belongs to one tensor, once.
Status check_tiling(const SafetensorsHeader& header, uint64_t data_bytes) {
  std::vector<const SafetensorsHeader::value_type*> tensors;
  for (const auto& item : header) tensors.push_back(&item);
  std::sort(tensors.begin(), tensors.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t covered = 0;
  for (const auto* item : tensors) {
    const auto& [name, entry] = *item;
    if (entry.begin < covered) return tensor_error(name, "its bytes overlap another tensor's");
    if (entry.begin > covered) return tensor_error(name, "bytes before it belong to no tensor");
    if (entry.end > data_bytes) return tensor_error(name, "its bytes end beyond the file");
    covered = entry.end;
  }
  if (covered == data_bytes) return {};
  return {Code::corrupt,
          std::to_string(data_bytes - covered) + " bytes at its end belong to no tensor"};
}

Status check_entry(const std::string& name, const SafetensorsHeaderEntry& entry) {
  if (!safetensors_dtype_bytes(entry.dtype)) {
    return tensor_error(name, "dtype '" + entry.dtype.substr(0, 40) + "' is not known");
  }
  const auto bytes = safetensors_tensor_bytes(entry.dtype, entry.shape);
  if (!bytes) return tensor_error(name, "its shape has more elements than can be counted");
  if (entry.end < entry.begin || entry.end - entry.begin != *bytes) {
    return tensor_error(
        name, "its offsets do not hold the " + std::to_string(*bytes) + " bytes of its shape");
  }
  return {};
}

void append_entry(std::string& json, const SafetensorsDeclaration& tensor, uint64_t begin,
                  uint64_t end) {
  json += "," + Json(tensor.name).dump() + ":{\"dtype\":\"" + tensor.dtype +
          "\",\"shape\":" + Json(tensor.shape).dump() + ",\"data_offsets\":[" +
          std::to_string(begin) + "," + std::to_string(end) + "]}";
}

}  // namespace

std::optional<uint64_t> safetensors_dtype_bytes(std::string_view dtype) {
  static constexpr std::array<std::pair<std::string_view, uint64_t>, 17> kSizes = {{
      {"BOOL", 1},
      {"U8", 1},
      {"I8", 1},
      {"F8_E5M2", 1},
      {"F8_E4M3", 1},
      {"F8_E8M0", 1},
      {"I16", 2},
      {"U16", 2},
      {"F16", 2},
      {"BF16", 2},
      {"I32", 4},
      {"U32", 4},
      {"F32", 4},
      {"I64", 8},
      {"U64", 8},
      {"F64", 8},
      {"C64", 8},
  }};
  for (const auto& [name, bytes] : kSizes) {
    if (name == dtype) return bytes;
  }
  return std::nullopt;
}

std::optional<uint64_t> safetensors_tensor_bytes(std::string_view dtype,
                                                 std::span<const int64_t> shape) {
  const auto element = safetensors_dtype_bytes(dtype);
  if (!element) return std::nullopt;
  uint64_t bytes = *element;
  for (const int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, uint64_t data_bytes) {
  HeaderReader reader;
  if (json.empty() || json.front() != '{') {
    return Status(Code::corrupt, "its header is not a JSON object");
  }
  if (!Json::sax_parse(json, &reader)) return Status(Code::corrupt, reader.error());
  SafetensorsHeader header = reader.take();
  for (const auto& [name, entry] : header) EXACT_RETURN_IF_ERROR(check_entry(name, entry));
  EXACT_RETURN_IF_ERROR(check_tiling(header, data_bytes));
  return header;
}

Result<SafetensorsPreamble> make_safetensors_preamble(
    std::span<const SafetensorsDeclaration> tensors) {
  SafetensorsPreamble preamble;
  std::set<std::string_view> names;
  for (size_t i = 0; i < tensors.size(); i++) {
    const SafetensorsDeclaration& tensor = tensors[i];
    if (tensor.name == "__metadata__" || !names.insert(tensor.name).second) {
      return Status(Code::invalid, "tensor '" + tensor.name + "': the name is taken");
    }
    if (!safetensors_tensor_bytes(tensor.dtype, tensor.shape)) {
      return Status(Code::invalid, "tensor '" + tensor.name + "': dtype '" + tensor.dtype +
                                       "' is not known, or its shape is no shape");
    }
    preamble.order.push_back(i);
  }
  std::sort(preamble.order.begin(), preamble.order.end(), [&](size_t a, size_t b) {
    const uint64_t wide_a = *safetensors_dtype_bytes(tensors[a].dtype);
    const uint64_t wide_b = *safetensors_dtype_bytes(tensors[b].dtype);
    return wide_a != wide_b ? wide_a > wide_b : tensors[a].name < tensors[b].name;
  });

  std::string json = "{\"__metadata__\":{\"format\":\"pt\"}";
  uint64_t begin = 0;
  try {
    for (const size_t index : preamble.order) {
      const SafetensorsDeclaration& tensor = tensors[index];
      uint64_t end = 0;
      if (__builtin_add_overflow(begin, *safetensors_tensor_bytes(tensor.dtype, tensor.shape),
                                 &end)) {
        return Status(Code::invalid, "the tensors have more bytes than can be counted");
      }
      append_entry(json, tensor, begin, end);
      begin = end;
    }
  } catch (const Json::exception&) {
    return Status(Code::invalid, "a tensor's name is not UTF-8");
  }
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');  // the data starts at a multiple of 8
  if (json.size() > kMaxSafetensorsHeaderBytes) {
    return Status(Code::invalid, "the tensors' names do not fit in a safetensors header");
  }
  for (int shift = 0; shift < 64; shift += 8) {
    preamble.bytes += static_cast<char>(json.size() >> shift & 0xff);
  }
  preamble.bytes += json;
  return preamble;
}

}  // namespace exact
