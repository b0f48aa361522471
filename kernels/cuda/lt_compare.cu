// fill_test_data: data[i] = a bf16 whose bits come from a hash of (seed, i / 2) where its pair
// cancels, of (seed, i) where it does not. count_differences: an integer sum. Neither rounds.
#include <cuda_runtime.h>

#include <string>

#include "kernels/base/bf16.h"
#include "kernels/cuda/lt_compare.h"

namespace exact::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 4096;

__device__ __forceinline__ uint64_t hash(uint64_t i, uint32_t seed) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u + seed * 0x632be59bd9b4e019u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

// Sign, an exponent from -4 to 1 (low ones more often), 7 bits of fraction.
__device__ __forceinline__ uint16_t finite_bf16(uint64_t bits) {
  const auto exponent = static_cast<uint32_t>(123 + ((bits >> 8 & 7) * 6 >> 3));
  return static_cast<uint16_t>((bits & 0x80u) << 8 | exponent << 7 | (bits & 0x7fu));
}

// Two of three pairs cancel but for a last bit; the rest are independent, so that sums wander.
__global__ void fill(uint16_t* data, int64_t count, bool negate_second, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint64_t pair = hash(static_cast<uint64_t>(i / 2), seed);
    const bool cancels = i / 2 % 3 != 0;
    if (i % 2 == 0) {
      data[i] = finite_bf16(pair);
    } else if (cancels) {
      const auto last_bit = static_cast<uint16_t>(pair >> 40 & 1);
      data[i] =
          static_cast<uint16_t>((finite_bf16(pair) ^ last_bit) ^ (negate_second ? 0x8000 : 0));
    } else {
      data[i] = finite_bf16(hash(static_cast<uint64_t>(i), seed + 1));
    }
  }
}

__global__ void count_kernel(Compared want, Compared got, int64_t rows, int64_t columns,
                             unsigned long long* differing) {
  const int64_t size = rows * columns;
  unsigned long long mine = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / columns, column = i % columns;
    mine += want.data[row * want.stride + column] != got.data[row * got.stride + column];
  }
  if (mine != 0) atomicAdd(differing, mine);
}

unsigned blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

Status launched(const char* name) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {};
  return Status(Code::device, std::string(name) + ": " + cudaGetErrorString(error));
}

}  // namespace

Status fill_test_data(uint16_t* data, int64_t count, TestSide side, uint32_t seed,
                      cudaStream_t stream) {
  if (count <= 0) return {};
  fill<<<blocks_for(count), kThreads, 0, stream>>>(data, count, side == TestSide::x, seed);
  return launched("fill_test_data");
}

Status count_differences(Compared want, Compared got, int64_t rows, int64_t columns,
                         uint64_t* differing, cudaStream_t stream) {
  if (rows <= 0 || columns <= 0) return {};
  static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
  count_kernel<<<blocks_for(rows * columns), kThreads, 0, stream>>>(
      want, got, rows, columns, reinterpret_cast<unsigned long long*>(differing));
  return launched("count_differences");
}

}  // namespace exact::cuda
