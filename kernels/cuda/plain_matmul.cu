// plain_matmul: out[t, n] = bf16(chain_k(x[t, k] * weight[n, k]) + bias[n])                rule N1
// shapes  x (T, K) and out (T, N) bf16 with row strides, weight (N, K) contiguous; any T, N % 8 ==
// 0,
//         K % 16 == 0
// order   one accumulator an output, k16 steps in ascending k (mma.sync m16n8k16, x first)
// rounds  the end, nowhere else; the bias is added before, in fp32
// launch  a block of 8 warps owns 128 tokens x 128 features, a warp 64 x 32 of them. Blocks of 64 k
//         of both are copied by cp.async into a ring of 3 stages, 128 bytes a row, swizzled by 16.
//         Rows beyond T or N repeat the last one and are not stored. Two blocks a multiprocessor.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "kernels/base/bf16.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {
namespace {

constexpr int kTile = 128;  // tokens and features of a block
constexpr int kBlockK = 64;
constexpr int kRowBytes = kBlockK * 2;
constexpr int kStages = 3;
constexpr int kSideBytes = kTile * kRowBytes;  // x or the weights, in one stage
constexpr int kStageBytes = 2 * kSideBytes;
constexpr int kThreads = 256;
constexpr int kTokenTiles = 4;    // of 16 tokens, in a warp's 64
constexpr int kFeatureTiles = 4;  // of 8 features, in a warp's 32

struct Problem {
  const uint16_t* x;
  const uint16_t* weight;
  const uint16_t* bias;
  uint16_t* out;
  int64_t x_stride, out_stride;
  int64_t tokens, out_features, in_features;
  int64_t token_blocks;
};

// 16 bytes from global to shared memory; zeros where `inside` is false.
__device__ __forceinline__ void copy_16(uint32_t to, const uint16_t* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copies_end_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
__device__ __forceinline__ void wait_for_all_but_one_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
}

// What a thread copies of a stage: 4 rows of each side, 32 rows apart, the same 16 bytes of each.
struct Copier {
  const uint16_t* x[4];
  const uint16_t* weight[4];
  uint32_t to;  // within a stage; the next row lies 32 rows further, with the same swizzle
  int k;        // of the 16 bytes

  __device__ Copier(const Problem& problem, int64_t first_token, int64_t first_feature) {
    const int row = static_cast<int>(threadIdx.x) / 8, chunk = static_cast<int>(threadIdx.x) % 8;
    k = chunk * 8;
    to = static_cast<uint32_t>(row * kRowBytes + ((chunk ^ (row & 7)) << 4));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t token = min(first_token + row + 32 * i, problem.tokens - 1);
      const int64_t feature = min(first_feature + row + 32 * i, problem.out_features - 1);
      x[i] = problem.x + token * problem.x_stride + k;
      weight[i] = problem.weight + feature * problem.in_features + k;
    }
  }

  __device__ __forceinline__ void copy(uint32_t stage, int64_t block, int64_t in_features) const {
    const int64_t offset = block * kBlockK;
    const bool inside = offset + k < in_features;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t row = to + static_cast<uint32_t>(32 * i * kRowBytes);
      copy_16(stage + row, inside ? x[i] + offset : x[i] - k, inside);
      copy_16(stage + kSideBytes + row, inside ? weight[i] + offset : weight[i] - k, inside);
    }
  }
};

using Sums = float[kTokenTiles][kFeatureTiles][4];

// One k16 step of a warp's 64 x 32 outputs. `x` and `weight` are this lane's matrix rows.
__device__ __forceinline__ void multiply_step(Sums& sums, uint32_t x, uint32_t weight) {
  uint32_t tokens[kTokenTiles][4], features[kFeatureTiles / 2][4];
#pragma unroll
  for (int i = 0; i < kTokenTiles; i++) {
    load_matrices(tokens[i], x + static_cast<uint32_t>(16 * i * kRowBytes));
  }
#pragma unroll
  for (int j = 0; j < kFeatureTiles / 2; j++) {
    load_matrices(features[j], weight + static_cast<uint32_t>(16 * j * kRowBytes));
  }
#pragma unroll
  for (int i = 0; i < kTokenTiles; i++) {
#pragma unroll
    for (int j = 0; j < kFeatureTiles; j++) {
      tensor_core_step(sums[i][j], tokens[i], features[j / 2][j % 2 * 2],
                       features[j / 2][j % 2 * 2 + 1]);
    }
  }
}

__device__ __forceinline__ void store_pair(const Problem& problem, int64_t token, int64_t feature,
                                           float low, float high) {
  if (token >= problem.tokens || feature >= problem.out_features) return;
  if (problem.bias != nullptr) {
    low += bf16_to_float(problem.bias[feature]);
    high += bf16_to_float(problem.bias[feature + 1]);
  }
  const uint32_t pair = static_cast<uint32_t>(float_to_bf16(high)) << 16 | float_to_bf16(low);
  *reinterpret_cast<uint32_t*>(problem.out + token * problem.out_stride + feature) = pair;
}

__global__ void __launch_bounds__(kThreads, 2)
    plain_matmul(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t ring = shared_address(shared);
  const int64_t first_token = blockIdx.x % problem.token_blocks * kTile;
  const int64_t first_feature = blockIdx.x / problem.token_blocks * kTile;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_token = warp % 2 * 64, warp_feature = warp / 2 * 32;
  const Copier copier(problem, first_token, first_feature);
  const int64_t steps = problem.in_features / 16;
  const int64_t blocks = (steps + 3) / 4;

  // x: matrices (tokens 0-7, k low), (8-15, low), (0-7, high), (8-15, high).
  // weights: (features 0-7, k low), (0-7, high), (8-15, low), (8-15, high).
  const int x_row = warp_token + lane % 16, x_half = lane / 16;
  const int weight_row = warp_feature + lane % 8 + lane / 16 * 8, weight_half = lane / 8 % 2;
  uint32_t x_at[4], weight_at[4];
#pragma unroll
  for (int step = 0; step < 4; step++) {
    x_at[step] =
        static_cast<uint32_t>(x_row * kRowBytes + (((2 * step + x_half) ^ (x_row & 7)) << 4));
    weight_at[step] = static_cast<uint32_t>(kSideBytes + weight_row * kRowBytes +
                                            (((2 * step + weight_half) ^ (weight_row & 7)) << 4));
  }

#pragma unroll
  for (int i = 0; i < kStages - 1; i++) {
    if (i < blocks)
      copier.copy(ring + static_cast<uint32_t>(i * kStageBytes), i, problem.in_features);
    copies_end_group();
  }
  Sums sums = {};
  int stage = 0;
  for (int64_t block = 0; block < blocks; block++) {
    wait_for_all_but_one_group();
    __syncthreads();  // the stage is here, and nobody reads the one that is filled next
    const int64_t ahead = block + kStages - 1;
    const int next = stage == 0 ? kStages - 1 : stage - 1;
    if (ahead < blocks) {
      copier.copy(ring + static_cast<uint32_t>(next * kStageBytes), ahead, problem.in_features);
    }
    copies_end_group();
    const uint32_t base = ring + static_cast<uint32_t>(stage * kStageBytes);
    const int64_t left = steps - block * 4;
    if (left >= 4) {
#pragma unroll
      for (int step = 0; step < 4; step++) {
        multiply_step(sums, base + x_at[step], base + weight_at[step]);
      }
    } else {
#pragma unroll
      for (int step = 0; step < 3; step++) {
        if (step < left) multiply_step(sums, base + x_at[step], base + weight_at[step]);
      }
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
#pragma unroll
  for (int i = 0; i < kTokenTiles; i++) {
#pragma unroll
    for (int j = 0; j < kFeatureTiles; j++) {
      const int64_t token = first_token + warp_token + 16 * i + lane / 4;
      const int64_t feature = first_feature + warp_feature + 8 * j + lane % 4 * 2;
      store_pair(problem, token, feature, sums[i][j][0], sums[i][j][1]);
      store_pair(problem, token + 8, feature, sums[i][j][2], sums[i][j][3]);
    }
  }
}

Status refuse(const char* name, int64_t value, const char* range) {
  return Status(Code::unsupported, "matmul: " + std::string(name) + " is " + std::to_string(value) +
                                       "; it must be " + range);
}

}  // namespace

Status check_matmul(const MatmulInputs& inputs) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (inputs.tokens < 1 || inputs.tokens > kMost) {
    return refuse("tokens", inputs.tokens, "from 1 to 2^30");
  }
  if (inputs.out_features < 8 || inputs.out_features % 8 != 0 || inputs.out_features > kMost) {
    return refuse("out_features", inputs.out_features, "a multiple of 8, at most 2^30");
  }
  if (inputs.in_features < 16 || inputs.in_features % 16 != 0 || inputs.in_features > kMost) {
    return refuse("in_features", inputs.in_features, "a multiple of 16, at most 2^30");
  }
  if (inputs.x_stride < inputs.in_features || inputs.x_stride % 8 != 0) {
    return refuse("x_stride", inputs.x_stride, "a multiple of 8, at least in_features");
  }
  if (inputs.out_stride < inputs.out_features || inputs.out_stride % 8 != 0) {
    return refuse("out_stride", inputs.out_stride, "a multiple of 8, at least out_features");
  }
  return {};
}

Status launch_plain_matmul(const MatmulInputs& inputs, cudaStream_t stream) {
  EXACT_RETURN_IF_ERROR(check_matmul(inputs));
  Problem problem{inputs.x,           inputs.weight,
                  inputs.bias,        inputs.out,
                  inputs.x_stride,    inputs.out_stride,
                  inputs.tokens,      inputs.out_features,
                  inputs.in_features, (inputs.tokens + kTile - 1) / kTile};
  const int64_t blocks = problem.token_blocks * ((inputs.out_features + kTile - 1) / kTile);
  if (blocks > 0x7fffffff) return refuse("tokens", inputs.tokens, "fewer, for so many features");
  constexpr int kSharedBytes = kStages * kStageBytes;
  cudaError_t error =
      cudaFuncSetAttribute(plain_matmul, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error == cudaSuccess) {
    plain_matmul<<<static_cast<unsigned>(blocks), kThreads, kSharedBytes, stream>>>(problem);
    error = cudaGetLastError();
  }
  if (error == cudaSuccess) return {};
  return Status(Code::device, std::string("plain_matmul: ") + cudaGetErrorString(error));
}

}  // namespace exact::cuda
