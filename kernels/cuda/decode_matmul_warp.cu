// decode_matmul, warp form:
//         out[t, n] = bf16(chain_k(x[t, k] * weight[n, k]) + bias[n])               rule N1
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

#include "kernels/cuda/decode_matmul_launch.cuh"

namespace exact::cuda {
namespace {

constexpr int kMaxWarps = 12;   // that multiply
constexpr int kMaxStages = 32;  // two arrays of barriers fit kBarrierBytes

// What a warp holds of one block of 64 k: four steps of 16 rows, and of 8 tokens a tile.
template <int kTiles>
struct Fragments {
  uint32_t weight[4][4];
  uint32_t x[4][2 * kTiles];
};

// The shape of the work, the same for every thread.
struct Shape {
  int tokens, out_features, chunks, stage_blocks, rows, groups;
  int weight_bytes, x_bytes;  // of one block of 64 k in a stage
  int stages;
  int begin_next;  // the stage at whose copy the next kernel may begin
  int64_t out_stride;
};

// One thread keeps the ring full: every stage of this block's row groups, in the order of use.
__device__ void copy_all(StageRing ring, const Shape& shape, const CUtensorMap* weight_map,
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
  const StageRing start = ring;
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
    if (i == shape.begin_next) let_next_kernel_begin();
    barrier_wait(ring.empty_barrier(), ring.parity);
    copy_weights();
    copy_x();
    next_chunk();
  }
  let_next_kernel_begin();
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
__device__ __forceinline__ void multiply_rows(float (&sums)[kTiles][4], StageRing& ring,
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
  out[token * shape.out_stride + n] = float_to_bf16(value);
}

template <int kTiles>
__global__ void __launch_bounds__((kMaxWarps + 1) * 32, 1)
    decode_matmul_warp(const __grid_constant__ CUtensorMap weight_map,
                       const __grid_constant__ CUtensorMap x_map, const uint16_t* __restrict__ bias,
                       uint16_t* __restrict__ out, const __grid_constant__ Shape shape) {
  extern __shared__ uint8_t shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = static_cast<int>(blockDim.x) / 32 - 1;
  const uint32_t start = (shared_address(shared) + kBarrierBytes - 1) & ~(kBarrierBytes - 1u);
  StageRing ring{start, start + 8 * kMaxStages, start + kBarrierBytes,
                 shape.stage_blocks * (shape.weight_bytes + shape.x_bytes), shape.stages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < shape.stages; i++) {
      barrier_init(ring.full + 8u * static_cast<uint32_t>(i), 1);
      barrier_init(ring.empty + 8u * static_cast<uint32_t>(i), warps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (shape.begin_next == 0) let_next_kernel_begin();
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

template <int kTiles>
Status launch(const DecodeMatmulPlan& plan, const DecodeMatmulOperands& operands,
              cudaStream_t stream) {
  EXACT_ASSIGN(const CUtensorMap weight_map,
               matrix_map(operands.weight, plan.out_features, plan.in_features, plan.in_features,
                          plan.rows, plan.stage_blocks));
  EXACT_ASSIGN(const CUtensorMap x_map,
               matrix_map(operands.x, plan.tokens, plan.in_features, operands.x_stride, kTiles * 8,
                          plan.stage_blocks));
  const int stage_k = plan.stage_blocks * kBlockK;
  const Shape shape{plan.tokens,
                    static_cast<int>(plan.out_features),
                    static_cast<int>((plan.in_features + stage_k - 1) / stage_k),
                    plan.stage_blocks,
                    plan.rows,
                    static_cast<int>((plan.out_features + plan.rows - 1) / plan.rows),
                    plan.rows * kRowBytes,
                    kTiles * 8 * kRowBytes,
                    plan.stages,
                    plan.begin_next,
                    operands.out_stride};
  return launch_overlapping(plan, (plan.rows / 16 + 1) * 32, stream, decode_matmul_warp<kTiles>,
                            weight_map, x_map, operands.bias, operands.out, shape);
}

}  // namespace

Status launch_warp_form(const DecodeMatmulPlan& plan, const DecodeMatmulOperands& operands,
                        cudaStream_t stream) {
  switch (plan.token_tiles) {
    case 1:
      return launch<1>(plan, operands, stream);
    case 2:
      return launch<2>(plan, operands, stream);
    case 4:
      return launch<4>(plan, operands, stream);
    case 8:
      return launch<8>(plan, operands, stream);
    default:
      return Status(Code::unsupported, plan.to_string() + ": no kernel for so many tiles");
  }
}

}  // namespace exact::cuda
