#include "kernels/cuda/device_copies.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"

namespace exact::cuda {
namespace {

// Bytes of the last chunk if the host must digest it, else 0.
uint64_t short_tail(uint64_t bytes) {
  const uint64_t tail = bytes % kDigestChunkBytes;
  return tail <= kShortChunkBytes ? tail : 0;
}

Status grow(Buffer& buffer, size_t bytes, Result<Buffer> (*allocate)(size_t)) {
  if (buffer.bytes() >= bytes) return {};
  buffer.reset();
  EXACT_ASSIGN(buffer, allocate(std::max(bytes, size_t{4096})));
  return {};
}

}  // namespace

DeviceCopies::~DeviceCopies() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  if (before_ != nullptr) cudaEventDestroy(before_);
  if (finished_ != nullptr) cudaEventDestroy(finished_);
  cudaStreamDestroy(stream_);
}

Status DeviceCopies::prepare(size_t copies, uint64_t chunks, uint64_t short_chunks) {
  if (stream_ == nullptr) {
    EXACT_RETURN_IF_ERROR(
        cuda_status(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"));
  }
  for (cudaEvent_t* event : {&before_, &finished_}) {
    if (*event != nullptr) continue;
    EXACT_RETURN_IF_ERROR(
        cuda_status(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "an event"));
  }
  EXACT_RETURN_IF_ERROR(grow(device_pieces_, copies * sizeof(DigestCopyPiece), allocate_device));
  EXACT_RETURN_IF_ERROR(grow(pinned_pieces_, copies * sizeof(DigestCopyPiece), allocate_pinned));
  EXACT_RETURN_IF_ERROR(grow(device_digests_, chunks * sizeof(Digest128), allocate_device));
  EXACT_RETURN_IF_ERROR(grow(pinned_digests_, chunks * sizeof(Digest128), allocate_pinned));
  return grow(pinned_short_, short_chunks * kShortChunkBytes, allocate_pinned);
}

Status DeviceCopies::start(std::span<const DeviceCopy> copies, cudaStream_t after) {
  EXACT_RETURN_IF_ERROR(wait());
  if (copies.empty()) return {};
  uint64_t chunks = 0, short_chunks = 0;
  for (const DeviceCopy& copy : copies) {
    const auto address =
        reinterpret_cast<uintptr_t>(copy.from) | reinterpret_cast<uintptr_t>(copy.to) | copy.bytes;
    EXACT_CHECK(address % 16 == 0, "a copy of pieces of 16 bytes");
    EXACT_CHECK(copy.chunks.size() == digest_chunk_count(copy.bytes), "a digest for each chunk");
    chunks += copy.chunks.size();
    short_chunks += short_tail(copy.bytes) > 0;
  }
  EXACT_RETURN_IF_ERROR(prepare(copies.size(), chunks, short_chunks));
  copies_.assign(copies.begin(), copies.end());
  short_chunks_.clear();

  auto* pieces = static_cast<DigestCopyPiece*>(pinned_pieces_.data());
  chunks = 0;
  for (size_t i = 0; i < copies.size(); i++) {
    pieces[i] = {copies[i].from, copies[i].to, copies[i].bytes, chunks};
    chunks += copies[i].chunks.size();
  }
  EXACT_RETURN_IF_ERROR(cuda_status(cudaEventRecord(before_, after), "an event"));
  EXACT_RETURN_IF_ERROR(cuda_status(cudaStreamWaitEvent(stream_, before_), "an event's wait"));
  EXACT_RETURN_IF_ERROR(cuda_status(
      cudaMemcpyAsync(device_pieces_.data(), pieces, copies.size() * sizeof(DigestCopyPiece),
                      cudaMemcpyHostToDevice, stream_),
      "the table of a weight copy"));
  EXACT_RETURN_IF_ERROR(launch_digest_copy(
      static_cast<const DigestCopyPiece*>(device_pieces_.data()),
      static_cast<int32_t>(copies.size()), chunks, static_cast<Digest128*>(device_digests_.data()),
      multiprocessors_, stream_));
  EXACT_RETURN_IF_ERROR(
      cuda_status(cudaMemcpyAsync(pinned_digests_.data(), device_digests_.data(),
                                  chunks * sizeof(Digest128), cudaMemcpyDeviceToHost, stream_),
                  "the digests of a weight copy"));
  for (const DeviceCopy& copy : copies) {
    const uint64_t bytes = short_tail(copy.bytes);
    if (bytes == 0) continue;
    // Of the copy, so that what is digested is what was copied.
    const std::byte* copied = copy.to != nullptr ? copy.to : copy.from;
    const size_t offset = short_chunks_.size() * kShortChunkBytes;
    EXACT_RETURN_IF_ERROR(cuda_status(
        cudaMemcpyAsync(static_cast<std::byte*>(pinned_short_.data()) + offset,
                        copied + copy.bytes - bytes, bytes, cudaMemcpyDeviceToHost, stream_),
        "the end of a tensor"));
    short_chunks_.push_back({&copy.chunks.back(), offset, bytes});
  }
  EXACT_RETURN_IF_ERROR(cuda_status(cudaEventRecord(finished_, stream_), "an event"));
  running_ = true;
  return {};
}

void DeviceCopies::collect() {
  running_ = false;
  const auto* digests = static_cast<const Digest128*>(pinned_digests_.data());
  for (const DeviceCopy& copy : copies_) {
    std::copy_n(digests, copy.chunks.size(), copy.chunks.begin());
    digests += copy.chunks.size();
  }
  const auto* bytes = static_cast<const std::byte*>(pinned_short_.data());
  for (const ShortChunk& chunk : short_chunks_) {
    *chunk.digest = digest128(std::span(bytes + chunk.offset, chunk.bytes));
  }
}

Result<bool> DeviceCopies::done() {
  if (!running_) return true;
  const cudaError_t error = cudaEventQuery(finished_);
  if (error == cudaErrorNotReady) return false;
  EXACT_RETURN_IF_ERROR(cuda_status(error, "a copy of weights"));
  collect();
  return true;
}

Status DeviceCopies::wait() {
  if (!running_) return {};
  EXACT_RETURN_IF_ERROR(cuda_status(cudaEventSynchronize(finished_), "a copy of weights"));
  collect();
  return {};
}

}  // namespace exact::cuda
