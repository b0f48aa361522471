#include "worker/manifest.h"

#include <string>
#include <string_view>
#include <unordered_map>

namespace exact::worker {
namespace {

constexpr size_t kMaxNameBytes = 128;
constexpr size_t kMaxShapeDimensions = 8;

// Text from a message, cut so that a long one can't swell an answer or a log.
std::string quoted(std::string_view text) {
  std::string out = "'" + std::string(text.substr(0, kMaxNameBytes)) + "'";
  for (char& c : out) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text.size() > kMaxNameBytes ? out + "..." : out;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size() && i < kMaxShapeDimensions; i++) {
    out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return out + (shape.size() > kMaxShapeDimensions ? ", ...)" : ")");
}

std::vector<int64_t> shape_of(const TensorSpec& spec) {
  if (spec.is_vector) return {spec.columns};
  return {spec.rows, spec.columns};
}

Status refuse(const ipc::ManifestTensor& tensor, const std::string& why) {
  return Status(Code::invalid, "tensor " + quoted(tensor.name) + why);
}

}  // namespace

Result<std::vector<ExpectedTensor>> match_manifest(const std::vector<ipc::ManifestTensor>& manifest,
                                                   const std::vector<TensorSpec>& table,
                                                   bool is_whole) {
  std::unordered_map<std::string_view, size_t> index_of;
  for (size_t i = 0; i < table.size(); i++) index_of.emplace(table[i].name, i);

  std::vector<bool> seen(table.size(), false);
  std::vector<ExpectedTensor> expected;
  expected.reserve(table.size());
  for (const ipc::ManifestTensor& tensor : manifest) {
    const auto found = index_of.find(tensor.name);
    if (found == index_of.end()) return refuse(tensor, " is not one of this model's: leave it out");
    const TensorSpec& spec = table[found->second];
    if (seen[found->second]) return refuse(tensor, " is listed twice: list each tensor once");
    seen[found->second] = true;
    if (tensor.dtype != "BF16") {
      return refuse(tensor, " has dtype " + quoted(tensor.dtype) + "; it must be BF16");
    }
    if (tensor.shape != shape_of(spec)) {
      return refuse(tensor, " has shape " + shape_text(tensor.shape) + "; this model has " +
                                shape_text(shape_of(spec)));
    }
    const Result<Digest128> digest = Digest128::from_hex(tensor.digest);
    if (!digest) {
      return refuse(tensor, " has digest " + quoted(tensor.digest) +
                                "; it must be 32 lower-case hex digits (xxh3-128 of its bytes)");
    }
    expected.push_back({found->second, static_cast<uint64_t>(spec.bytes()), *digest});
  }
  for (size_t i = 0; i < table.size(); i++) {
    if (seen[i] || !is_whole) continue;
    return Status(Code::invalid,
                  "tensor '" + table[i].name +
                      "' is missing: a whole update carries every tensor of the model");
  }
  return expected;
}

}  // namespace exact::worker
