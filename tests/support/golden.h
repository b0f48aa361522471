// golden.h owns the goldens of tests/golden: what stock PyTorch gave on an H200, and the inputs it
// had, which are rebuilt from their hash. A missing file or key is a failed check: the goldens are
// a part of the repository.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/check.h"

namespace exact {

class GoldenFile {
 public:
  // A path below tests/golden: "ops.safetensors", "qwen3-d64/golden.safetensors".
  explicit GoldenFile(const std::string& path);

  std::vector<std::string> keys() const;
  bool has(const std::string& key) const { return tensors_.contains(key); }
  const std::vector<int64_t>& shape(const std::string& key) const { return tensor(key).shape; }

  // bf16 as uint16_t, fp32 as float, int32 as int32_t.
  template <class T>
  std::vector<T> values(const std::string& key) const {
    const Tensor& stored = tensor(key);
    EXACT_CHECK(stored.dtype == dtype_of<T>(), "a golden is read as its own type");
    std::vector<T> out(stored.byte_count / sizeof(T));
    std::memcpy(out.data(), bytes_.data() + stored.offset, stored.byte_count);
    return out;
  }

 private:
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    size_t offset = 0;
    size_t byte_count = 0;
  };

  template <class T>
  static std::string_view dtype_of() {
    if constexpr (sizeof(T) == 2) return "BF16";
    return static_cast<T>(0.5) == T{} ? "I32" : "F32";
  }
  const Tensor& tensor(const std::string& key) const;

  std::string bytes_;
  std::map<std::string, Tensor> tensors_;
};

// The inputs of docs/numerics.md: element i is uniform(name, seed, i, lo, hi).
std::vector<uint16_t> hash_bf16(std::string_view name, uint64_t seed, size_t count, double lo,
                                double hi);
std::vector<float> hash_fp32(std::string_view name, uint64_t seed, size_t count, double lo,
                             double hi);

}  // namespace exact
