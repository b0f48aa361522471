#include "trainer_bridge/cuda_ipc_sender.h"

#include <algorithm>

#include "trainer_bridge/publish_plan.h"

#if EXACT_WITH_CUDA
#include "kernels/cuda/tensor_digests.h"
#endif

namespace exact::bridge {
namespace {

// A bucket costs a message and a wait, and takes no memory.
constexpr uint64_t kLeastBucketBytes = 256ull << 20;

Result<std::vector<Digest128>> digests_on_device(std::span<const NamedTensor> tensors) {
#if EXACT_WITH_CUDA
  std::vector<std::span<const std::byte>> bytes;
  for (const NamedTensor& tensor : tensors) bytes.push_back(tensor.bytes);
  return cuda::device_tensor_digests(bytes);
#else
  return Status(Code::unsupported, "this build has no CUDA parts: tensor '" + tensors.front().name +
                                       "' can't be read on its GPU");
#endif
}

}  // namespace

Status CudaIpcSender::prepare(ipc::UpdateBegin& begin) {
  begin.transport = static_cast<uint8_t>(ipc::WeightTransport::cuda_ipc);
  begin.bucket_bytes = std::max(begin.bucket_bytes, kLeastBucketBytes);
  EXACT_ASSIGN(begin.tensors, describe_tensors(tensors_));
  std::vector<ipc::DeviceTensor> device_tensors;
  for (const NamedTensor& tensor : tensors_) {
    device_tensors.push_back({tensor.bytes.data(), tensor.bytes.size()});
  }
  EXACT_ASSIGN(export_, ipc::CudaExport::create(device_tensors));
  begin.cuda = export_->memory();
  EXACT_ASSIGN(const std::vector<Digest128> digests, digests_on_device(tensors_));
  for (size_t i = 0; i < digests.size(); i++) begin.tensors[i].digest = digests[i].to_hex();
  return {};
}

Status CudaIpcSender::open(const ipc::UpdateReady& ready) {
  std::vector<uint64_t> sizes;
  for (const NamedTensor& tensor : tensors_) sizes.push_back(tensor.bytes.size());
  buckets_ = ipc::tensor_buckets(sizes, ready.bucket_bytes);
  return {};
}

uint64_t CudaIpcSender::payload_bytes(uint64_t index) const {
  uint64_t bytes = 0;
  for (size_t i = buckets_[index].begin; i < buckets_[index].end; i++) {
    bytes += tensors_[i].bytes.size();
  }
  return bytes;
}

}  // namespace exact::bridge
