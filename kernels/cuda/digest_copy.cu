// digest_copy.cu owns xxh3-128 of long inputs on a GPU. A warp takes a chunk. Within a block of
// 1 KiB xxh3 only adds, so eight blocks are read at once, one by each four lanes; what chains them
// (a shift, a xor and a product for each block) goes through the sums afterwards, by every four
// lanes alike. Lane pairs: four lanes hold xxh3's eight accumulators, two each.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/digest_copy.h"
#include "kernels/cuda/memory.h"

namespace exact::cuda {
namespace {

constexpr int kStripesOfBlock = 16;  // of 64 bytes
constexpr int kBlockBytes = 1024;
constexpr int kWarpsOfBlock = 4;

constexpr uint64_t kPrime32_1 = 0x9E3779B1, kPrime32_2 = 0x85EBCA77, kPrime32_3 = 0xC2B2AE3D;
constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87, kPrime64_2 = 0xC2B2AE3D27D4EB4F,
                   kPrime64_3 = 0x165667B19E3779F9, kPrime64_4 = 0x85EBCA77C2B2AE63,
                   kPrime64_5 = 0x27D4EB2F165667C5;

// xxh3's default secret, as little-endian words: of a block's stripes (word n + i is the key of
// accumulator i in stripe n; words 16 to 23 scramble), of the last stripe (from byte 121), and of
// the two halves of the result (from bytes 11 and 117).
__constant__ uint64_t kSecret[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
    0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
    0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
    0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af};
__constant__ uint64_t kLastSecret[8] = {0xea647378d9c97e9f, 0xc5c3ebd33483acc5, 0x17eb6313faffa081,
                                        0xd349daf0b751dd0d, 0x2b9e68d429265516, 0x8ffca1477d58be16,
                                        0x45ce31d07ad1b8f8, 0xaf280416958f3acb};
__constant__ uint64_t kLowSecret[8] = {0x6dd4de1cad21f72c, 0xa44072db979083e9, 0xe679cb1f67b3b7a4,
                                       0xd05a8278e5c0cc4e, 0x4608b82172ffcc7d, 0x9035e08e2443f774,
                                       0x52283c4c263a81e6, 0x65d088cb00c391bb};
__constant__ uint64_t kHighSecret[8] = {0xd9c97e9fc83159b4, 0x3483acc5ea647378, 0xfaffa081c5c3ebd3,
                                        0xb751dd0d17eb6313, 0x29265516d349daf0, 0x7d58be162b9e68d4,
                                        0x7ad1b8f88ffca147, 0x958f3acb45ce31d0};
__constant__ uint64_t kFirst[8] = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                                   kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};

// Two accumulators of xxh3, those that one lane holds.
struct Pair {
  uint64_t even = 0, odd = 0;
};

__device__ uint64_t product_of_halves(uint64_t x) {
  return uint64_t{static_cast<uint32_t>(x)} * static_cast<uint32_t>(x >> 32);
}

__device__ void accumulate(Pair& sum, ulonglong2 data, uint64_t even_key, uint64_t odd_key) {
  sum.even += data.y + product_of_halves(data.x ^ even_key);
  sum.odd += data.x + product_of_halves(data.y ^ odd_key);
}

__device__ uint64_t scrambled(uint64_t x, uint64_t key) {
  return (x ^ x >> 47 ^ key) * kPrime32_1;
}

__device__ uint64_t folded_product(uint64_t x, uint64_t y) {
  return x * y ^ __umul64hi(x, y);
}

__device__ uint64_t merged(const Pair& sum, const uint64_t* secret, int quarter, uint64_t start) {
  uint64_t part = folded_product(sum.even ^ secret[2 * quarter], sum.odd ^ secret[2 * quarter + 1]);
  part += __shfl_xor_sync(0xFFFFFFFF, part, 1);
  part += __shfl_xor_sync(0xFFFFFFFF, part, 2);
  uint64_t x = start + part;
  x = (x ^ x >> 37) * 0x165667919E3779F9;
  return x ^ x >> 32;
}

// A lane's keys: of its two accumulators in every stripe of a block, and of their scrambling.
struct Keys {
  uint64_t stripe[kStripesOfBlock + 1];
  uint64_t even, odd;
  __device__ explicit Keys(int quarter) {
#pragma unroll
    for (int n = 0; n <= kStripesOfBlock; n++) stripe[n] = kSecret[n + 2 * quarter];
    even = kSecret[16 + 2 * quarter];
    odd = kSecret[17 + 2 * quarter];
  }
};

// Where 16 bytes come from and go to.
struct Lanes {
  const std::byte* from;
  std::byte* to;  // or null
  __device__ ulonglong2 take(uint64_t offset) const {
    const auto data = __ldcs(reinterpret_cast<const ulonglong2*>(from + offset));
    if (to != nullptr) __stcs(reinterpret_cast<ulonglong2*>(to + offset), data);
    return data;
  }
};

// The sums of one block's stripes. All loads are on their way before the first sum.
__device__ Pair sum_block(const Lanes& lanes, uint64_t offset, int stripes, const Keys& keys) {
  ulonglong2 data[kStripesOfBlock];
#pragma unroll
  for (int n = 0; n < kStripesOfBlock; n++) {
    if (n < stripes) {
      data[n] = __ldcs(reinterpret_cast<const ulonglong2*>(lanes.from + offset + 64 * n));
    }
  }
  Pair sum;
#pragma unroll
  for (int n = 0; n < kStripesOfBlock; n++) {
    if (n >= stripes) continue;
    if (lanes.to != nullptr) {
      __stcs(reinterpret_cast<ulonglong2*>(lanes.to + offset + 64 * n), data[n]);
    }
    accumulate(sum, data[n], keys.stripe[n], keys.stripe[n + 1]);
  }
  return sum;
}

// A chunk of more than kShortChunkBytes; all 32 lanes of a warp.
__device__ void digest_chunk(const std::byte* from, std::byte* to, uint32_t bytes, const Keys& keys,
                             Digest128* digest) {
  const int lane = static_cast<int>(threadIdx.x % 32), group = lane / 4, quarter = lane % 4;
  const Lanes lanes{from + 16 * quarter, to == nullptr ? nullptr : to + 16 * quarter};
  const int scrambled_blocks = static_cast<int>((bytes - 1) / kBlockBytes);
  const int last_stripes = static_cast<int>((bytes - 1) % kBlockBytes / 64);
  Pair chain{kFirst[2 * quarter], kFirst[2 * quarter + 1]};
  for (int first = 0; first <= scrambled_blocks; first += 8) {
    const int block = first + group;
    const int stripes = block < scrambled_blocks    ? kStripesOfBlock
                        : block == scrambled_blocks ? last_stripes
                                                    : 0;
    const Pair sum =
        sum_block(lanes, uint64_t{kBlockBytes} * static_cast<uint32_t>(block), stripes, keys);
    const int here = min(8, scrambled_blocks + 1 - first);
    for (int i = 0; i < here; i++) {
      chain.even += __shfl_sync(0xFFFFFFFF, sum.even, 4 * i + quarter);
      chain.odd += __shfl_sync(0xFFFFFFFF, sum.odd, 4 * i + quarter);
      if (first + i == scrambled_blocks) break;
      chain.even = scrambled(chain.even, keys.even);
      chain.odd = scrambled(chain.odd, keys.odd);
    }
  }
  // The last 64 bytes, some of them for the second time, by every four lanes alike.
  const Lanes reader{lanes.from, group == 0 ? lanes.to : nullptr};
  accumulate(chain, reader.take(bytes - 64), kLastSecret[2 * quarter],
             kLastSecret[2 * quarter + 1]);
  const uint64_t low = merged(chain, kLowSecret, quarter, bytes * kPrime64_1);
  const uint64_t high = merged(chain, kHighSecret, quarter, ~(bytes * kPrime64_2));
  if (lane == 0) *digest = Digest128{high, low};
}

// The piece that has chunk `chunk`.
__device__ int piece_of(const DigestCopyPiece* pieces, int count, uint64_t chunk) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (pieces[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

__global__ void __launch_bounds__(32 * kWarpsOfBlock)
    digest_copy(const DigestCopyPiece* pieces, int piece_count, uint64_t chunk_count,
                Digest128* digests) {
  const Keys keys(threadIdx.x % 4);
  const uint64_t warps = uint64_t{gridDim.x} * kWarpsOfBlock;
  for (uint64_t chunk = uint64_t{blockIdx.x} * kWarpsOfBlock + threadIdx.x / 32;
       chunk < chunk_count; chunk += warps) {
    const DigestCopyPiece piece = pieces[piece_of(pieces, piece_count, chunk)];
    const uint64_t offset = (chunk - piece.first_chunk) * kDigestChunkBytes;
    const auto bytes =
        static_cast<uint32_t>(min(uint64_t{kDigestChunkBytes}, piece.bytes - offset));
    std::byte* to = piece.to == nullptr ? nullptr : piece.to + offset;
    if (bytes > kShortChunkBytes) {
      digest_chunk(piece.from + offset, to, bytes, keys, digests + chunk);
    } else if (to != nullptr && threadIdx.x % 32 < bytes / 16) {
      const uint64_t mine = 16 * (threadIdx.x % 32);
      (void)Lanes{piece.from + offset, to}.take(mine);
    }
  }
}

}  // namespace

Status launch_digest_copy(const DigestCopyPiece* pieces, int32_t piece_count, uint64_t chunk_count,
                          Digest128* digests, int multiprocessors, cudaStream_t stream) {
  if (chunk_count == 0) return {};
  const uint64_t blocks = std::min<uint64_t>((chunk_count + kWarpsOfBlock - 1) / kWarpsOfBlock,
                                             static_cast<uint64_t>(multiprocessors) * 8);
  digest_copy<<<static_cast<unsigned>(blocks), 32 * kWarpsOfBlock, 0, stream>>>(
      pieces, piece_count, chunk_count, digests);
  return cuda_status(cudaGetLastError(), "the copy and digest of weights");
}

}  // namespace exact::cuda
