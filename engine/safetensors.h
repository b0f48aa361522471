// safetensors.h owns the safetensors format: a bounded reader over a mapped file, and a writer.
// A header that lies (lengths, offsets, overlaps, gaps, duplicate names, wrong sizes for a shape)
// is refused; nothing is allocated from a number in the file before it is checked against the
// file's size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/result.h"
#include "kernels/base/tensor.h"

namespace exact {

struct SafetensorsEntry {
  std::string dtype;  // "BF16", "F32", "I32", "I64", ... as in the file
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // into the mapping
};

class SafetensorsFile {
 public:
  // not_found: no such file; corrupt: names the file and what is wrong.
  static Result<SafetensorsFile> open(const std::string& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::map<std::string, SafetensorsEntry, std::less<>>& entries() const;
  const SafetensorsEntry* find(std::string_view name) const;
  const std::string& path() const;

 private:
  struct Mapping;
  explicit SafetensorsFile(std::unique_ptr<Mapping> mapping);
  std::unique_ptr<Mapping> mapping_;
};

struct SafetensorsOutput {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

// Writes to `path` + ".tmp", fsyncs, renames: the file is whole or not there. metadata {"format":
// "pt"}.
Status write_safetensors(const std::string& path, std::span<const SafetensorsOutput> tensors);

}  // namespace exact
