// fill_test_data: bits of a hash, arranged as lt_compare.h says. count_differences: an integer sum.
// Neither rounds.
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

// Sign, a magnitude from 2^-9 to 2^2, 7 bits of fraction; everything times 2^exponent_offset.
__device__ __forceinline__ uint16_t finite_bf16(uint64_t bits, int exponent_offset = 0) {
  const auto exponent =
      static_cast<uint32_t>(118 + exponent_offset + static_cast<int>((bits >> 8 & 0xff) * 12 >> 8));
  return static_cast<uint16_t>((bits & 0x80u) << 8 | exponent << 7 | (bits & 0x7fu));
}

__device__ uint16_t weight_value(int64_t row, int64_t column, int64_t columns, uint32_t seed) {
  const int64_t k = min(column, columns - 1 - column);
  const bool alike = row % 2 != 0;  // neighbours, but for a last bit
  const uint64_t bits = hash(static_cast<uint64_t>(row * columns + (alike ? k / 2 : k)), seed);
  const auto last_bit = static_cast<uint16_t>(alike && k % 2 != 0 ? bits >> 40 & 1 : 0);
  return static_cast<uint16_t>(finite_bf16(bits) ^ last_bit);
}

__device__ uint16_t x_value(int64_t row, int64_t column, int64_t columns, uint32_t seed) {
  const auto place = [&](int64_t k) { return static_cast<uint64_t>(row * columns + k); };
  constexpr uint16_t kMinus = 0x8000, kInfinity = 0x7f80;
  if (row % 64 == 37 && column == columns / 3) return kInfinity;
  if (row % 64 == 38 && column == columns / 3) return kInfinity;
  if (row % 64 == 38 && column == columns - 1 - columns / 3) return kInfinity | kMinus;
  if (row % 4 == 2) return finite_bf16(hash(place(column), seed));
  if (row % 8 == 3) {
    const uint64_t bits = hash(place(column / 2), seed);
    const bool second = column % 2 != 0;
    const auto last_bit = static_cast<uint16_t>(second ? bits >> 40 & 1 : 0);
    return static_cast<uint16_t>(finite_bf16(bits) ^ last_bit ^ (second ? kMinus : 0));
  }
  const bool second_half = column >= columns / 2;
  const uint64_t bits = hash(place(second_half ? columns - 1 - column : column), seed);
  const uint16_t value = finite_bf16(bits, row % 8 == 7 ? -117 : 0);
  return static_cast<uint16_t>(value ^ (second_half ? kMinus : 0));
}

__device__ uint16_t bias_value(int64_t column, uint32_t seed) {
  if (column % 4 == 0) return 0;
  return finite_bf16(hash(static_cast<uint64_t>(column), seed), column % 4 == 1 ? -20 : 0);
}

__global__ void fill(uint16_t* data, int64_t rows, int64_t columns, TestSide side, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < rows * columns;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / columns, column = i % columns;
    data[i] = side == TestSide::x        ? x_value(row, column, columns, seed)
              : side == TestSide::weight ? weight_value(row, column, columns, seed)
                                         : bias_value(column, seed);
  }
}

__global__ void count_kernel(Compared want, Compared got, int64_t rows, int64_t columns,
                             uint32_t* counts) {
  __shared__ uint32_t of_warps[kThreads / 32];
  const int64_t size = rows * columns;
  uint32_t mine = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = i / columns, column = i % columns;
    mine += want.data[row * want.stride + column] != got.data[row * got.stride + column];
  }
  mine = __reduce_add_sync(0xffffffffu, mine);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint32_t sum = 0;
  for (const uint32_t count : of_warps) sum += count;
  counts[blockIdx.x] = sum;
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

Status fill_test_data(uint16_t* data, int64_t rows, int64_t columns, TestSide side, uint32_t seed,
                      cudaStream_t stream) {
  if (rows <= 0 || columns <= 0) return {};
  fill<<<blocks_for(rows * columns), kThreads, 0, stream>>>(data, rows, columns, side, seed);
  return launched("fill_test_data");
}

Status count_differences(Compared want, Compared got, int64_t rows, int64_t columns,
                         uint32_t* counts, cudaStream_t stream) {
  count_kernel<<<kDifferenceCounts, kThreads, 0, stream>>>(want, got, rows, columns, counts);
  return launched("count_differences");
}

}  // namespace exact::cuda
