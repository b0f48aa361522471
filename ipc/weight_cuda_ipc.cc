#include "ipc/weight_cuda_ipc.h"

#if EXACT_WITH_CUDA

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <optional>

#include "ipc/cuda_support.h"
#include "ipc/tensor_buckets.h"
#include "kernels/base/check.h"

namespace exact::ipc {
namespace {

std::string tensor_name(size_t index) {
  return "tensor " + std::to_string(index) + " of the manifest";
}

// The part of the checks that needs no driver.
Status check_memory(const CudaMemory& memory, size_t tensors, const std::string& device_uuid) {
  if (memory.device_uuid != device_uuid) {
    return Status(Code::unsupported,
                  "the tensors lie on GPU " + memory.device_uuid.substr(0, 32) +
                      ", the worker is on " + device_uuid +
                      ": publish through nccl or shared memory, or put both on one GPU");
  }
  if (memory.event.size() != sizeof(cudaIpcEventHandle_t)) {
    return Status(Code::invalid, "cuda.event has " + std::to_string(memory.event.size()) +
                                     " bytes; a cudaIpcEventHandle_t has 64");
  }
  if (memory.places.size() != tensors) {
    return Status(Code::invalid, "cuda.places has " + std::to_string(memory.places.size()) +
                                     " places for " + std::to_string(tensors) + " tensors");
  }
  for (const CudaAllocation& allocation : memory.allocations) {
    if (allocation.handle.size() == sizeof(cudaIpcMemHandle_t)) continue;
    return Status(Code::invalid, "cuda.allocations has a handle of " +
                                     std::to_string(allocation.handle.size()) +
                                     " bytes; a cudaIpcMemHandle_t has 64");
  }
  for (size_t i = 0; i < tensors; i++) {
    const TensorPlace& place = memory.places[i];
    if (place.allocation >= 0 &&
        static_cast<size_t>(place.allocation) < memory.allocations.size() &&
        place.offset % 16 == 0) {
      continue;
    }
    return Status(Code::invalid, tensor_name(i) +
                                     " lies in no allocation of the list, or not at a multiple of "
                                     "16 bytes");
  }
  return {};
}

class CudaIpcChannel final : public WeightChannel {
 public:
  CudaIpcChannel(CudaMemory memory, std::vector<uint64_t> tensor_bytes, uint64_t bucket_bytes)
      : memory_(std::move(memory)),
        tensor_bytes_(std::move(tensor_bytes)),
        buckets_(tensor_buckets(tensor_bytes_, bucket_bytes)),
        mapped_(memory_.allocations.size()),
        last_bucket_(memory_.allocations.size()) {
    for (size_t bucket = 0; bucket < buckets_.size(); bucket++) {
      for (size_t i = buckets_[bucket].begin; i < buckets_[bucket].end; i++) {
        last_bucket_[allocation_of(i)] = bucket;
      }
    }
  }
  ~CudaIpcChannel() override {
    for (Mapping& mapping : mapped_) close(mapping);
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  Status open_event() {
    cudaIpcEventHandle_t handle;
    std::memcpy(&handle, memory_.event.data(), sizeof(handle));
    return cuda_error(cudaIpcOpenEventHandle(&event_, handle),
                      "cuda.event is not an interprocess event of this machine");
  }

  void describe(UpdateReady&) const override {}
  uint64_t bucket_count() const override { return buckets_.size(); }

  Status expect(uint64_t index) override {
    EXACT_CHECK(index == expected_ && index < buckets_.size(), "buckets are expected in order");
    expected_++;
    return {};
  }

  Result<std::optional<BucketPieces>> poll() override {
    if (released_ == expected_) return std::optional<BucketPieces>();
    if (!is_written_) {
      const cudaError_t error = cudaEventQuery(event_);
      if (error == cudaErrorNotReady) return std::optional<BucketPieces>();
      EXACT_RETURN_IF_ERROR(cuda_error(error, "the trainer's event"));
      is_written_ = true;
    }
    BucketPieces bucket;
    bucket.on_device = true;
    for (size_t i = buckets_[released_].begin; i < buckets_[released_].end; i++) {
      EXACT_ASSIGN(const std::byte* const data, locate(i));
      bucket.pieces.push_back({i, 0, tensor_bytes_[i], data});
    }
    return std::optional<BucketPieces>(std::move(bucket));
  }

  void release() override {
    EXACT_CHECK(released_ < expected_, "no bucket to release");
    for (size_t i = buckets_[released_].begin; i < buckets_[released_].end; i++) {
      const size_t allocation = allocation_of(i);
      if (last_bucket_[allocation] == released_) close(mapped_[allocation]);
    }
    released_++;
  }

 private:
  struct Mapping {
    std::byte* base = nullptr;
    uint64_t bytes = 0;
  };

  size_t allocation_of(size_t tensor) const {
    return static_cast<size_t>(memory_.places[tensor].allocation);
  }

  static void close(Mapping& mapping) {
    if (mapping.base != nullptr) cudaIpcCloseMemHandle(mapping.base);
    mapping = {};
  }

  Status map(size_t allocation) {
    cudaIpcMemHandle_t handle;
    std::memcpy(&handle, memory_.allocations[allocation].handle.data(), sizeof(handle));
    void* data = nullptr;
    EXACT_RETURN_IF_ERROR(
        cuda_error(cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess),
                   "cuda.allocations[" + std::to_string(allocation) +
                       "] is not memory of a process on this GPU"));
    Mapping& mapping = mapped_[allocation];
    mapping.base = static_cast<std::byte*>(data);
    EXACT_ASSIGN(const AddressRange range, address_range(data));
    mapping.bytes = static_cast<uint64_t>(range.base + range.bytes - mapping.base);
    return {};
  }

  // Where a tensor lies in this process: within what the driver says was mapped.
  Result<const std::byte*> locate(size_t tensor) {
    const size_t allocation = allocation_of(tensor);
    Mapping& mapping = mapped_[allocation];
    if (mapping.base == nullptr) EXACT_RETURN_IF_ERROR(map(allocation));
    const uint64_t offset = memory_.places[tensor].offset, bytes = tensor_bytes_[tensor];
    if (offset > mapping.bytes || bytes > mapping.bytes - offset) {
      return Status(Code::invalid, tensor_name(tensor) + " has " + std::to_string(bytes) +
                                       " bytes at offset " + std::to_string(offset) +
                                       " of memory that the driver knows to have " +
                                       std::to_string(mapping.bytes));
    }
    return static_cast<const std::byte*>(mapping.base + offset);
  }

  CudaMemory memory_;
  std::vector<uint64_t> tensor_bytes_;
  std::vector<TensorRange> buckets_;
  std::vector<Mapping> mapped_;      // of each allocation
  std::vector<size_t> last_bucket_;  // that reads from each allocation
  cudaEvent_t event_ = nullptr;
  bool is_written_ = false;  // the trainer's kernels have ended
  uint64_t expected_ = 0, released_ = 0;
};

class CudaExportImpl final : public CudaExport {
 public:
  ~CudaExportImpl() override {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  const CudaMemory& memory() const override { return memory_; }

  Status add(const DeviceTensor& tensor, size_t index) {
    if ((reinterpret_cast<uintptr_t>(tensor.data) | tensor.bytes) % 16 != 0) {
      return Status(Code::unsupported, tensor_name(index) +
                                           " does not begin and end at a multiple of 16 bytes: "
                                           "publish it through shared memory");
    }
    EXACT_ASSIGN(const AddressRange range, address_range(tensor.data));
    const auto [found, is_new] =
        allocations_.try_emplace(range.base, static_cast<int32_t>(memory_.allocations.size()));
    if (is_new) {
      cudaIpcMemHandle_t handle;
      EXACT_RETURN_IF_ERROR(cuda_error(
          cudaIpcGetMemHandle(&handle, const_cast<std::byte*>(range.base)),
          tensor_name(index) +
              " lies in memory that other processes can't map: allocate it with cudaMalloc (in "
              "PyTorch: without expandable_segments and the cudaMallocAsync allocator), or publish "
              "through shared memory",
          Code::unsupported));
      memory_.allocations.push_back(
          {std::string(reinterpret_cast<const char*>(&handle), sizeof(handle))});
    }
    memory_.places.push_back({found->second, static_cast<uint64_t>(tensor.data - range.base)});
    return {};
  }

  Status record(cudaStream_t stream) {
    EXACT_RETURN_IF_ERROR(cuda_error(
        cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventInterprocess),
        "an interprocess event"));
    EXACT_RETURN_IF_ERROR(cuda_error(cudaEventRecord(event_, stream), "recording an event"));
    cudaIpcEventHandle_t handle;
    EXACT_RETURN_IF_ERROR(
        cuda_error(cudaIpcGetEventHandle(&handle, event_), "the handle of an event"));
    memory_.event.assign(reinterpret_cast<const char*>(&handle), sizeof(handle));
    EXACT_ASSIGN(memory_.device_uuid, current_device_uuid());
    return {};
  }

 private:
  CudaMemory memory_;
  std::map<const std::byte*, int32_t> allocations_;  // index of the allocation at each base
  cudaEvent_t event_ = nullptr;
};

}  // namespace

Result<std::unique_ptr<WeightChannel>> open_cuda_ipc(const CudaMemory& memory,
                                                     std::vector<uint64_t> tensor_bytes,
                                                     uint64_t bucket_bytes,
                                                     const std::string& device_uuid) {
  EXACT_RETURN_IF_ERROR(check_memory(memory, tensor_bytes.size(), device_uuid));
  auto channel = std::make_unique<CudaIpcChannel>(memory, std::move(tensor_bytes), bucket_bytes);
  EXACT_RETURN_IF_ERROR(channel->open_event());
  return std::unique_ptr<WeightChannel>(std::move(channel));
}

Result<std::unique_ptr<CudaExport>> CudaExport::create(std::span<const DeviceTensor> tensors,
                                                       void* stream) {
  auto made = std::make_unique<CudaExportImpl>();
  for (size_t i = 0; i < tensors.size(); i++) EXACT_RETURN_IF_ERROR(made->add(tensors[i], i));
  EXACT_RETURN_IF_ERROR(made->record(static_cast<cudaStream_t>(stream)));
  return std::unique_ptr<CudaExport>(std::move(made));
}

}  // namespace exact::ipc

#else

#include "ipc/no_cuda.h"

namespace exact::ipc {

Result<std::unique_ptr<WeightChannel>> open_cuda_ipc(const CudaMemory&, std::vector<uint64_t>,
                                                     uint64_t, const std::string&) {
  return no_cuda();
}
Result<std::unique_ptr<CudaExport>> CudaExport::create(std::span<const DeviceTensor>, void*) {
  return no_cuda();
}

}  // namespace exact::ipc

#endif
