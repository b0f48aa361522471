#include "tests/support/golden.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "kernels/contract/hash_init.h"

namespace exact {

GoldenFile::GoldenFile(const std::string& path) {
  std::ifstream file(std::string(EXACT_GOLDEN_DIR) + "/" + path, std::ios::binary);
  EXACT_CHECK(file.good(), "a golden file is missing from tests/golden");
  bytes_.assign(std::istreambuf_iterator<char>(file), {});
  uint64_t header_bytes = 0;
  EXACT_CHECK(bytes_.size() >= 8, "a golden file is cut off");
  std::memcpy(&header_bytes, bytes_.data(), 8);
  EXACT_CHECK(header_bytes <= bytes_.size() - 8, "a golden file is cut off");
  const size_t data_begin = 8 + static_cast<size_t>(header_bytes);
  const auto header = nlohmann::json::parse(
      bytes_.begin() + 8, bytes_.begin() + static_cast<std::ptrdiff_t>(data_begin));
  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") continue;
    const size_t begin = value.at("data_offsets").at(0);
    const size_t end = value.at("data_offsets").at(1);
    EXACT_CHECK(begin <= end && data_begin + end <= bytes_.size(), "a golden file is cut off");
    tensors_[key] = {value.at("dtype"), value.at("shape"), data_begin + begin, end - begin};
  }
}

std::vector<std::string> GoldenFile::keys() const {
  std::vector<std::string> names;
  for (const auto& [key, stored] : tensors_) names.push_back(key);
  return names;
}

const GoldenFile::Tensor& GoldenFile::tensor(const std::string& key) const {
  const auto found = tensors_.find(key);
  EXACT_CHECK(found != tensors_.end(), key.c_str());
  return found->second;
}

std::vector<uint16_t> hash_bf16(std::string_view name, uint64_t seed, size_t count, double lo,
                                double hi) {
  const contract::HashStream stream(name, seed);
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < count; i++) values[i] = stream.uniform_bf16(i, lo, hi);
  return values;
}

std::vector<float> hash_fp32(std::string_view name, uint64_t seed, size_t count, double lo,
                             double hi) {
  const contract::HashStream stream(name, seed);
  std::vector<float> values(count);
  for (size_t i = 0; i < count; i++) values[i] = stream.uniform(i, lo, hi);
  return values;
}

}  // namespace exact
