#include "kernels/cuda/tensor_digests.h"

#include <string>

#include "kernels/cuda/device_copies.h"

namespace exact::cuda {

Result<std::vector<Digest128>> device_tensor_digests(
    std::span<const std::span<const std::byte>> tensors, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  EXACT_RETURN_IF_ERROR(cuda_status(cudaGetDevice(&device), "the current GPU"));
  EXACT_RETURN_IF_ERROR(
      cuda_status(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                  "the GPU's multiprocessors"));
  std::vector<std::vector<Digest128>> chunks;
  std::vector<DeviceCopy> reads;
  chunks.reserve(tensors.size());
  for (const std::span<const std::byte> tensor : tensors) {
    if ((reinterpret_cast<uintptr_t>(tensor.data()) | tensor.size()) % 16 != 0) {
      return Status(Code::invalid, "tensor " + std::to_string(chunks.size()) +
                                       " does not begin and end at a multiple of 16 bytes");
    }
    chunks.emplace_back(digest_chunk_count(tensor.size()));
    reads.push_back({tensor.data(), nullptr, tensor.size(), chunks.back()});
  }
  DeviceCopies copies(multiprocessors);
  EXACT_RETURN_IF_ERROR(copies.start(reads, stream));
  EXACT_RETURN_IF_ERROR(copies.wait());
  std::vector<Digest128> digests;
  for (const auto& each : chunks) digests.push_back(tensor_digest_of_chunks(each));
  return digests;
}

}  // namespace exact::cuda
