// decode_matmul: out[t, n] = bf16(chain_k(x[t, k] * weight[n, k]) + bias[n])               rule N1
// shapes  weight (N, K), x (T, K), out (T, N) row-major bf16; T <= 64, N % 8 == 0, K % 64 == 0
// order   one accumulator an output, k16 steps in ascending k (mma.sync with the weights as the
// first
//         operand: operand order is free)
// rounds  the end, nowhere else
// launch  a block of W + 1 warps takes 16 W rows of the weights at a time. The last warp copies: a
//         ring of stages in shared memory, each `stage_blocks` blocks of 64 k of weights and x, by
//         the tensor copy engine with the 128-byte swizzle. The others multiply, 16 rows a warp.
//         The ring is filled with weights before the kernel before is done; x comes after it.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/base/bf16.h"
#include "kernels/cuda/decode_matmul.h"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {
namespace {

constexpr int kBlockK = 64;  // k in a block: 128 bytes, one row of the swizzle
constexpr int kRowBytes = kBlockK * 2;
constexpr int kMaxWarps = 12;  // that multiply
constexpr int kMaxStages = 32;
constexpr int kMaxStageBlocks = 8;
constexpr int kBarrierBytes = 1024;  // before the ring, which is aligned to it
constexpr int kRingBytes = 222 * 1024;
constexpr int kStageBytes = 41 * 1024;  // at most; large stages need few barriers

// What a warp holds of one block of 64 k: four steps of 16 rows, and of 8 tokens a tile.
template <int kTiles>
struct Fragments {
  uint32_t weight[4][4];
  uint32_t x[4][2 * kTiles];
};

// Where the stages lie and whose turn they are.
struct Ring {
  uint32_t full, empty, data;  // shared addresses: barriers, then the stages
  int stage_bytes, stages;
  int stage = 0;
  uint32_t parity = 0;

  __device__ uint32_t full_barrier() const { return full + 8u * static_cast<uint32_t>(stage); }
  __device__ uint32_t empty_barrier() const { return empty + 8u * static_cast<uint32_t>(stage); }
  __device__ uint32_t base() const { return data + static_cast<uint32_t>(stage * stage_bytes); }
  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1u;
    }
  }
};

// The shape of the work, the same for every thread.
struct Shape {
  int tokens, out_features, chunks, stage_blocks, rows, groups;
  int weight_bytes, x_bytes;  // of one block of 64 k in a stage
};

// One thread keeps the ring full: every stage of this block's row groups, in the order of use.
__device__ void copy_all(Ring ring, const Shape& shape, const CUtensorMap* weight_map,
                         const CUtensorMap* x_map) {
  const uint64_t once = evict_first_policy();
  const uint64_t shared = evict_last_policy();
  const int first = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  const int my_groups = (shape.groups - first + step - 1) / step;
  const int total = my_groups * shape.chunks;
  int chunk = 0, row = first * shape.rows;
  const auto copy_weights = [&] {
    barrier_expect(ring.full_barrier(), static_cast<uint32_t>(ring.stage_bytes));
    copy_box(ring.base(), weight_map, 0, row, chunk * shape.stage_blocks, ring.full_barrier(),
             once);
  };
  const auto copy_x = [&] {
    const uint32_t to =
        ring.base() + static_cast<uint32_t>(shape.stage_blocks * shape.weight_bytes);
    copy_box(to, x_map, 0, 0, chunk * shape.stage_blocks, ring.full_barrier(), shared);
  };
  const auto next_chunk = [&] {
    ring.advance();
    if (++chunk == shape.chunks) {
      chunk = 0;
      row += step * shape.rows;
    }
  };
  const int early = total < ring.stages ? total : ring.stages;
  const Ring start = ring;
  for (int i = 0; i < early; i++) {
    copy_weights();
    next_chunk();
  }
  const int next_first_chunk = chunk, next_row = row;
  wait_for_earlier_kernels();
  ring = start;
  chunk = 0;
  for (int i = 0; i < early; i++) {
    copy_x();
    next_chunk();
  }
  chunk = next_first_chunk;
  row = next_row;
  ring.stage = 0;
  ring.parity = 0;
  for (int i = early; i < total; i++) {
    barrier_wait(ring.empty_barrier(), ring.parity);
    copy_weights();
    copy_x();
    next_chunk();
  }
}

// Offsets of a lane's matrix rows within a block, for its four steps.
struct LaneOffsets {
  uint32_t weight[4], x[4];
};

template <int kTiles>
__device__ LaneOffsets lane_offsets(int warp, int lane) {
  LaneOffsets offsets;
  // Weights: matrices (rows 0-7, k low), (rows 8-15, k low), (0-7, high), (8-15, high).
  const int row = warp * 16 + (lane & 15);
  // x: (tokens 0-7, low), (0-7, high), then tokens 8-15; with one tile, then the next step.
  const int token = kTiles == 1 ? lane & 7 : (lane & 7) + (lane >> 4) * 8;
  for (int step = 0; step < 4; step++) {
    const int weight_chunk = 2 * step + (lane >> 4);
    const int x_chunk = 2 * (kTiles == 1 ? step + (lane >> 4) : step) + (lane >> 3 & 1);
    offsets.weight[step] =
        static_cast<uint32_t>(row * kRowBytes + ((weight_chunk ^ (row & 7)) << 4));
    offsets.x[step] = static_cast<uint32_t>(token * kRowBytes + ((x_chunk ^ (token & 7)) << 4));
  }
  return offsets;
}

template <int kTiles>
__device__ __forceinline__ void load_fragments(Fragments<kTiles>& to, const LaneOffsets& lane,
                                               uint32_t weight, uint32_t x) {
#pragma unroll
  for (int step = 0; step < 4; step++) load_matrices(to.weight[step], weight + lane.weight[step]);
  uint32_t four[4];
  if constexpr (kTiles == 1) {
#pragma unroll
    for (int step = 0; step < 4; step += 2) {
      load_matrices(four, x + lane.x[step]);
      to.x[step][0] = four[0], to.x[step][1] = four[1];
      to.x[step + 1][0] = four[2], to.x[step + 1][1] = four[3];
    }
  } else {
#pragma unroll
    for (int step = 0; step < 4; step++) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile += 2) {
        load_matrices(four, x + static_cast<uint32_t>(tile * 8 * kRowBytes) + lane.x[step]);
#pragma unroll
        for (int i = 0; i < 4; i++) to.x[step][2 * tile + i] = four[i];
      }
    }
  }
}

template <int kTiles>
__device__ __forceinline__ void multiply(float (&sums)[kTiles][4], const Fragments<kTiles>& from) {
#pragma unroll
  for (int step = 0; step < 4; step++) {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      tensor_core_step(sums[tile], from.weight[step], from.x[step][2 * tile],
                       from.x[step][2 * tile + 1]);
    }
  }
}

// The chains of one warp's 16 rows, over all of K. With few tokens the next block's fragments are
// loaded while this one is multiplied; with many, the tiles hide the loads themselves.
template <int kTiles>
__device__ __forceinline__ void multiply_rows(float (&sums)[kTiles][4], Ring& ring,
                                              const Shape& shape, const LaneOffsets& lane_offset,
                                              bool leader) {
  constexpr int kAhead = kTiles <= 2 ? 2 : 1;
  const int blocks = shape.chunks * shape.stage_blocks;
  Fragments<kTiles> fragments[kAhead];
  int block = 0;  // within the stage
  const auto load = [&](Fragments<kTiles>& to) {
    const uint32_t base = ring.base();
    load_fragments(to, lane_offset, base + static_cast<uint32_t>(block * shape.weight_bytes),
                   base + static_cast<uint32_t>(shape.stage_blocks * shape.weight_bytes +
                                                block * shape.x_bytes));
  };
  // After its last block has been loaded to registers, a stage can be filled again.
  const auto move_on = [&](bool more) {
    if (++block < shape.stage_blocks) return;
    block = 0;
    __syncwarp();
    if (leader) barrier_arrive(ring.empty_barrier());
    ring.advance();
    if (more) barrier_wait(ring.full_barrier(), ring.parity);
  };
  barrier_wait(ring.full_barrier(), ring.parity);
  if constexpr (kAhead == 2) {
    load(fragments[0]);
    const auto step = [&](const Fragments<kTiles>& now, Fragments<kTiles>& next, int i) {
      move_on(i + 1 < blocks);
      if (i + 1 < blocks) load(next);
      multiply(sums, now);
    };
    int i = 0;
    for (; i + 1 < blocks; i += 2) {
      step(fragments[0], fragments[1], i);
      step(fragments[1], fragments[0], i + 1);
    }
    if (i < blocks) step(fragments[0], fragments[1], i);
  } else {
    for (int i = 0; i < blocks; i++) {
      load(fragments[0]);
      multiply(sums, fragments[0]);
      move_on(i + 1 < blocks);
    }
  }
}

__device__ __forceinline__ void store(uint16_t* out, const uint16_t* bias, const Shape& shape,
                                      int token, int n, float sum) {
  if (token >= shape.tokens || n >= shape.out_features) return;
  const float value = bias == nullptr ? sum : sum + bf16_to_float(bias[n]);
  out[static_cast<int64_t>(token) * shape.out_features + n] = float_to_bf16(value);
}

template <int kTiles>
__global__ void __launch_bounds__((kMaxWarps + 1) * 32, 1)
    decode_matmul(const __grid_constant__ CUtensorMap weight_map,
                  const __grid_constant__ CUtensorMap x_map, const uint16_t* __restrict__ bias,
                  uint16_t* __restrict__ out, const Shape shape, int stages) {
  extern __shared__ uint8_t shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = static_cast<int>(blockDim.x) / 32 - 1;
  const uint32_t start = (shared_address(shared) + kBarrierBytes - 1) & ~(kBarrierBytes - 1u);
  Ring ring{start, start + 8 * kMaxStages, start + kBarrierBytes,
            shape.stage_blocks * (shape.weight_bytes + shape.x_bytes), stages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; i++) {
      barrier_init(ring.full + 8u * static_cast<uint32_t>(i), 1);
      barrier_init(ring.empty + 8u * static_cast<uint32_t>(i), warps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  let_next_kernel_begin();
  if (warp == warps) {
    if (lane == 0) copy_all(ring, shape, &weight_map, &x_map);
    return;
  }
  wait_for_earlier_kernels();  // they may still read what is written here
  const LaneOffsets lane_offset = lane_offsets<kTiles>(warp, lane);
  for (int group = static_cast<int>(blockIdx.x); group < shape.groups;
       group += static_cast<int>(gridDim.x)) {
    float sums[kTiles][4] = {};
    multiply_rows(sums, ring, shape, lane_offset, lane == 0);
    const int n = group * shape.rows + warp * 16 + lane / 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
      const int token = tile * 8 + lane % 4 * 2;
      store(out, bias, shape, token, n, sums[tile][0]);
      store(out, bias, shape, token + 1, n, sums[tile][1]);
      store(out, bias, shape, token, n + 8, sums[tile][2]);
      store(out, bias, shape, token + 1, n + 8, sums[tile][3]);
    }
  }
}

// ---- host
using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// A (rows, K) matrix as boxes of `blocks` blocks of 64 k by `box_rows` rows, each block 128 bytes a
// row and swizzled; what lies outside the matrix reads as zero.
Result<CUtensorMap> matrix_map(const uint16_t* data, int64_t rows, int64_t k, int box_rows,
                               int blocks) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                       cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return Status(Code::device, "the CUDA driver has no tensor maps: install driver 525 or newer");
  }
  CUtensorMap map{};
  const cuuint64_t sizes[3] = {kBlockK, static_cast<cuuint64_t>(rows),
                               static_cast<cuuint64_t>(k / kBlockK)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(k) * 2, kRowBytes};
  const cuuint32_t box[3] = {kBlockK, static_cast<cuuint32_t>(box_rows),
                             static_cast<cuuint32_t>(blocks)};
  const cuuint32_t ones[3] = {1, 1, 1};
  const CUresult result = reinterpret_cast<EncodeTensorMap>(function)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<uint16_t*>(data), sizes, strides, box,
      ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return Status(Code::device, "a tensor map of " + std::to_string(rows) + " x " +
                                    std::to_string(k) + " was refused (CUresult " +
                                    std::to_string(result) +
                                    "): is the matrix aligned to 16 bytes?");
  }
  return map;
}

template <int kTiles>
Status launch(const DecodeMatmulPlan& plan, const CUtensorMap& weight_map, const CUtensorMap& x_map,
              const uint16_t* bias, uint16_t* out, cudaStream_t stream) {
  const int rows = plan.warps * 16;
  const int stage_k = plan.stage_blocks * kBlockK;
  const Shape shape{plan.tokens,
                    static_cast<int>(plan.out_features),
                    static_cast<int>((plan.in_features + stage_k - 1) / stage_k),
                    plan.stage_blocks,
                    rows,
                    static_cast<int>((plan.out_features + rows - 1) / rows),
                    rows * kRowBytes,
                    kTiles * 8 * kRowBytes};
  cudaError_t error = cudaFuncSetAttribute(
      decode_matmul<kTiles>, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
  if (error == cudaSuccess) {
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
    config.blockDim = dim3(static_cast<unsigned>(plan.warps + 1) * 32);
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = 1;
    error = cudaLaunchKernelEx(&config, decode_matmul<kTiles>, weight_map, x_map, bias, out, shape,
                               plan.stages);
  }
  if (error == cudaSuccess) return {};
  return Status(Code::device, plan.to_string() + ": " + cudaGetErrorString(error));
}

Status refuse(const char* name, int64_t value, const char* range) {
  return Status(Code::unsupported, "decode_matmul: " + std::string(name) + " is " +
                                       std::to_string(value) + "; it must be " + range);
}

}  // namespace

std::string DecodeMatmulPlan::to_string() const {
  return "decode_matmul (N, K) = (" + std::to_string(out_features) + ", " +
         std::to_string(in_features) + ") tokens " + std::to_string(tokens) + ": " +
         std::to_string(blocks) + " blocks of " + std::to_string(warps) + " + 1 warps, " +
         std::to_string(stages) + " stages of " + std::to_string(stage_blocks * kBlockK) + " k";
}

Result<DecodeMatmulPlan> plan_decode_matmul(int tokens, int64_t out_features, int64_t in_features,
                                            int multiprocessors) {
  if (tokens < 1 || tokens > kMaxDecodeTokens) return refuse("tokens", tokens, "from 1 to 64");
  if (out_features < 8 || out_features % 8 != 0 || out_features > 1 << 24) {
    return refuse("out_features", out_features, "a multiple of 8, at most 2^24");
  }
  if (in_features < kBlockK || in_features % kBlockK != 0 || in_features > 1 << 24) {
    return refuse("in_features", in_features, "a multiple of 64, at most 2^24");
  }
  EXACT_CHECK(multiprocessors > 0, "a GPU without multiprocessors");
  DecodeMatmulPlan plan;
  plan.tokens = tokens;
  plan.out_features = out_features;
  plan.in_features = in_features;
  plan.token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8;
  // As many warps a block as spread the rows over all multiprocessors, in equal passes.
  const auto tiles = static_cast<int>((out_features + 15) / 16);
  const int each = (tiles + multiprocessors - 1) / multiprocessors;
  const int passes = (each + kMaxWarps - 1) / kMaxWarps;
  plan.warps = (each + passes - 1) / passes;
  const int rows = plan.warps * 16;
  plan.blocks = std::min<int>(multiprocessors, static_cast<int>((out_features + rows - 1) / rows));
  const int block_bytes = (rows + plan.token_tiles * 8) * kRowBytes;
  plan.stage_blocks = kMaxStageBlocks;
  while (plan.stage_blocks > 1 && (plan.stage_blocks * block_bytes > kStageBytes ||
                                   plan.stage_blocks * kBlockK > in_features)) {
    plan.stage_blocks /= 2;
  }
  const int stage_bytes = plan.stage_blocks * block_bytes;
  plan.stages = std::min(kMaxStages, kRingBytes / stage_bytes);
  plan.shared_bytes = 2 * kBarrierBytes + plan.stages * stage_bytes;
  return plan;
}

Status launch_decode_matmul(const DecodeMatmulPlan& plan, const uint16_t* weight, const uint16_t* x,
                            const uint16_t* bias, uint16_t* out, cudaStream_t stream) {
  EXACT_ASSIGN(const CUtensorMap weight_map, matrix_map(weight, plan.out_features, plan.in_features,
                                                        plan.warps * 16, plan.stage_blocks));
  EXACT_ASSIGN(const CUtensorMap x_map, matrix_map(x, plan.tokens, plan.in_features,
                                                   plan.token_tiles * 8, plan.stage_blocks));
  switch (plan.token_tiles) {
    case 1:
      return launch<1>(plan, weight_map, x_map, bias, out, stream);
    case 2:
      return launch<2>(plan, weight_map, x_map, bias, out, stream);
    case 4:
      return launch<4>(plan, weight_map, x_map, bias, out, stream);
    default:
      return launch<8>(plan, weight_map, x_map, bias, out, stream);
  }
}

}  // namespace exact::cuda
