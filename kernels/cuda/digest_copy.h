// digest_copy.h owns the one pass of a weight update on the GPU: bytes are read once, written to
// their place, and digested on the way (xxh3-128 of each chunk of 64 KiB, kernels/base/digest.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/base/digest.h"
#include "kernels/base/result.h"

namespace exact::cuda {

// The shortest chunk that the kernel digests; xxh3 treats shorter ones in other ways, on the host.
inline constexpr uint64_t kShortChunkBytes = 240;

// One tensor, or a piece of it that begins at a chunk. Addresses and size are multiples of 16.
struct DigestCopyPiece {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;  // null: digest only
  uint64_t bytes = 0;
  uint64_t first_chunk = 0;  // chunks of the pieces before this one
};

// Chunk i of all pieces, in order, has its digest in digests[i]; those of chunks of up to
// kShortChunkBytes are not written. Both arrays are in device memory.
Status launch_digest_copy(const DigestCopyPiece* pieces, int32_t piece_count, uint64_t chunk_count,
                          Digest128* digests, int multiprocessors, cudaStream_t stream);

}  // namespace exact::cuda
