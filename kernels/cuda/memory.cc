#include "kernels/cuda/memory.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/base/hex.h"

namespace exact::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kFirstArenaBytes = size_t{1} << 20;

std::string mebibytes(size_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

}  // namespace

Status cuda_status(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return {};
  return Status(Code::device, std::string(what) + ": " + cudaGetErrorString(error));
}

Result<Buffer> allocate_device(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is reported here, and must not be found by the next call
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return Status(Code::exhausted, "the GPU has no room for " + mebibytes(bytes) + ": " +
                                       mebibytes(free_bytes) + " of " + mebibytes(total_bytes) +
                                       " are free; lower --pages, "
                                       "--max-step-tokens or what else uses the GPU");
  }
  EXACT_RETURN_IF_ERROR(cuda_status(error, "cudaMalloc"));
  return Buffer(data, bytes, [](void* memory) { cudaFree(memory); });
}

Result<Buffer> allocate_pinned(size_t bytes) {
  void* data = nullptr;
  EXACT_RETURN_IF_ERROR(cuda_status(cudaMallocHost(&data, std::max<size_t>(bytes, 1)),
                                    "pinned memory of " + mebibytes(bytes)));
  return Buffer(data, bytes, [](void* memory) { cudaFreeHost(memory); });
}

std::string uuid_text(const cudaUUID_t& uuid) {
  return hex_text(std::as_bytes(std::span(uuid.bytes)));
}

Result<TransferArena::Slot> TransferArena::take(size_t bytes) {
  const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (used_ + size > pinned_.bytes()) {
    size_t grown = std::max(kFirstArenaBytes, 2 * pinned_.bytes());
    while (grown < size) grown *= 2;
    EXACT_ASSIGN(Buffer device, allocate_device(grown));
    EXACT_ASSIGN(Buffer pinned, allocate_pinned(grown));
    outgrown_.push_back(std::exchange(device_, std::move(device)));
    outgrown_.push_back(std::exchange(pinned_, std::move(pinned)));
    used_ = 0;
  }
  const Slot slot{static_cast<std::byte*>(device_.data()) + used_,
                  static_cast<std::byte*>(pinned_.data()) + used_};
  used_ += size;
  return slot;
}

Result<const void*> TransferArena::push(std::span<const std::byte> bytes, cudaStream_t stream) {
  EXACT_ASSIGN(const Slot slot, take(bytes.size()));
  std::memcpy(slot.pinned, bytes.data(), bytes.size());
  EXACT_RETURN_IF_ERROR(cuda_status(
      cudaMemcpyAsync(slot.device, slot.pinned, bytes.size(), cudaMemcpyHostToDevice, stream),
      "a copy to the GPU"));
  return static_cast<const void*>(slot.device);
}

Result<void*> TransferArena::expect(std::span<std::byte> host) {
  EXACT_ASSIGN(const Slot slot, take(host.size()));
  outputs_.push_back({host.size(), slot, host.data(), nullptr});
  return static_cast<void*>(slot.device);
}

Result<void*> TransferArena::expect(size_t bytes, std::function<void(const std::byte*)> take_them) {
  EXACT_ASSIGN(const Slot slot, take(bytes));
  outputs_.push_back({bytes, slot, nullptr, std::move(take_them)});
  return static_cast<void*>(slot.device);
}

Status TransferArena::fetch(cudaStream_t stream) {
  for (const Output& output : outputs_) {
    EXACT_RETURN_IF_ERROR(cuda_status(cudaMemcpyAsync(output.slot.pinned, output.slot.device,
                                                      output.bytes, cudaMemcpyDeviceToHost, stream),
                                      "a copy from the GPU"));
  }
  return {};
}

void TransferArena::collect(bool failed) {
  if (!failed) {
    for (const Output& output : outputs_) {
      if (output.take != nullptr) {
        output.take(output.slot.pinned);
      } else if (output.bytes > 0) {
        std::memcpy(output.host, output.slot.pinned, output.bytes);
      }
    }
  }
  outputs_.clear();
  outgrown_.clear();
  used_ = 0;
}

}  // namespace exact::cuda
