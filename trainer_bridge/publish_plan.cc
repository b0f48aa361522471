#include "trainer_bridge/publish_plan.h"

#include <cstring>
#include <limits>
#include <string_view>
#include <unordered_set>

#include "kernels/base/digest.h"

namespace exact::bridge {
namespace {

constexpr uint64_t kBytesPerElement = 2;  // bf16

Status bad_tensor(const NamedTensor& tensor, const std::string& what) {
  return Status(Code::invalid, "tensor '" + tensor.name + "' " + what);
}

Status check_tensor(const NamedTensor& tensor) {
  if (tensor.name.empty()) return Status(Code::invalid, "a tensor has no name");
  if (tensor.shape.empty()) return bad_tensor(tensor, "has no dimensions");
  uint64_t bytes = kBytesPerElement;
  for (const int64_t dimension : tensor.shape) {
    if (dimension <= 0) return bad_tensor(tensor, "has a dimension that is not above 0");
    if (bytes > std::numeric_limits<uint64_t>::max() / static_cast<uint64_t>(dimension)) {
      return bad_tensor(tensor, "has a shape larger than any memory");
    }
    bytes *= static_cast<uint64_t>(dimension);
  }
  if (bytes == tensor.bytes.size()) return {};
  return bad_tensor(tensor, "has " + std::to_string(tensor.bytes.size()) +
                                " bytes where its shape in bf16 has " + std::to_string(bytes) +
                                ": publish contiguous bf16");
}

}  // namespace

Result<std::vector<ipc::ManifestTensor>> describe_tensors(std::span<const NamedTensor> tensors) {
  if (tensors.empty()) return Status(Code::invalid, "there is no tensor to publish");
  std::unordered_set<std::string_view> names;
  std::vector<ipc::ManifestTensor> manifest;
  manifest.reserve(tensors.size());
  for (const NamedTensor& tensor : tensors) {
    EXACT_RETURN_IF_ERROR(check_tensor(tensor));
    if (!names.insert(tensor.name).second) return bad_tensor(tensor, "is there twice");
    ipc::ManifestTensor entry;
    entry.name = tensor.name;
    entry.dtype = "BF16";
    entry.shape = tensor.shape;
    manifest.push_back(std::move(entry));
  }
  return manifest;
}

Result<std::vector<ipc::ManifestTensor>> make_manifest(std::span<const NamedTensor> tensors) {
  EXACT_ASSIGN(auto manifest, describe_tensors(tensors));
  for (size_t i = 0; i < manifest.size(); i++) {
    manifest[i].digest = tensor_digest(tensors[i].bytes).to_hex();
  }
  return manifest;
}

Result<PublishPlan> PublishPlan::make(std::span<const NamedTensor> tensors, uint64_t bucket_bytes) {
  PublishPlan plan;
  plan.tensors_ = tensors;
  for (const NamedTensor& tensor : tensors) plan.tensor_bytes_.push_back(tensor.bytes.size());
  EXACT_ASSIGN(plan.buckets_, ipc::BucketPlan::create(plan.tensor_bytes_, bucket_bytes));
  return plan;
}

void PublishPlan::fill(uint64_t index, std::span<std::byte> out) const {
  EXACT_CHECK(payload_bytes(index) <= out.size(), "a bucket larger than its place");
  size_t written = 0;
  for (const ipc::TensorSlice& slice : ipc::slices(buckets_, tensor_bytes_, index)) {
    const NamedTensor& tensor = tensors_[slice.tensor_index];
    const auto source = tensor.bytes.subspan(slice.tensor_offset, slice.bytes);
    std::memcpy(out.data() + written, source.data(), source.size());
    written += source.size();
  }
  EXACT_CHECK(written == payload_bytes(index), "a bucket's slices do not fill it");
}

}  // namespace exact::bridge
