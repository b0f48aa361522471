// decode_matmul, warpgroup form:
//         out[t, n] = bf16(chain_k(x[t, k] * weight[n, k]) + bias[n])                      rule N1
// shapes  weight (N, K), x (T, K), out (T, N) bf16; T <= 64, N % 8 == 0, K % 64 == 0
// order   one accumulator an output, k16 steps in ascending k: wgmma with 64 rows of x, from
//         registers, as the first operand (zeros beyond T) and the block's rows of the weights
// rounds  the end, nowhere else
// launch  a block takes kN * kParts rows of the weights at a time, over all of K: one warpgroup
//         multiplies, one warp copies weights, one copies x, each through a ring of stages of its
//         own, by the tensor copy engine with the 128-byte swizzle. The ring of weights is filled
//         before the kernel before is done. The blocks of a cluster share x: a stage is copied to
//         all of them at once, so that the L2 is read once a cluster.
#include <cuda_bf16.h>

#include "kernels/cuda/decode_matmul_launch.cuh"
#include "kernels/cuda/decode_wgmma.cuh"

namespace exact::cuda {
namespace {

constexpr int kMultiplyWarps = 4;  // one warpgroup
constexpr int kThreads = (kMultiplyWarps + 2) * 32;
constexpr int kSteps = kBlockK / 16;  // in a block of 64 k
constexpr int kRound = 4;             // blocks in a turn of the loop; zeros beyond K change nothing
constexpr int kMaxStages = 32;        // of each ring: four arrays of barriers fill kBarrierBytes

// The work, the same for every thread.
struct Shape {
  int tokens, out_features, k_blocks;  // K in blocks of 64
  int groups;                          // of kN * kParts rows of the weights
  int weight_stage_blocks, weight_stages;
  int x_rows, x_stage_blocks, x_stages;
  int cluster;
  int begin_next;  // the weight stage at whose copy the next kernel may begin
  int64_t out_stride;
};

struct Counts {
  int passes;                           // row groups of this block
  int rounds, weight_stages, x_stages;  // in each of them
};

__device__ __forceinline__ Counts counts_of(const Shape& shape) {
  // A cluster stays together: its blocks make the same passes, the last ones maybe over no rows.
  const int first = static_cast<int>(blockIdx.x) / shape.cluster * shape.cluster;
  const int step = static_cast<int>(gridDim.x);
  const int rounds = (shape.k_blocks + kRound - 1) / kRound;
  return {(shape.groups - first + step - 1) / step, rounds,
          (rounds * kRound + shape.weight_stage_blocks - 1) / shape.weight_stage_blocks,
          (rounds * kRound + shape.x_stage_blocks - 1) / shape.x_stage_blocks};
}

// The weights' copies in the order of use; a stage at a time.
struct WeightCopies {
  StageRing ring;
  const CUtensorMap* map;
  int stage_blocks, stages_of_pass, row, row_step;
  uint64_t policy;
  int k_stage = 0;

  __device__ void copy_next() {
    barrier_expect(ring.full_barrier(), static_cast<uint32_t>(ring.stage_bytes));
    copy_box(ring.base(), map, 0, row, k_stage * stage_blocks, ring.full_barrier(), policy);
    ring.advance();
    if (++k_stage == stages_of_pass) {
      k_stage = 0;
      row += row_step;
    }
  }
};

// The blocks of a cluster take turns: stage i is copied, to all of them, by block i modulo the
// cluster, when all of them have handed it back to that one. The barrier that counts its bytes is
// armed by those who wait for it.
__device__ void copy_x(StageRing ring, const Shape& shape, const Counts& counts,
                       const CUtensorMap* map) {
  const uint64_t policy = evict_last_policy();
  const int rank = shape.cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const auto everybody = static_cast<uint16_t>((1u << shape.cluster) - 1);
  const int total = counts.passes * counts.x_stages;
  uint32_t parities = 0;  // of the next hand-back of each stage, a bit each
  int k_stage = 0, turn = 0;
  for (int i = 0; i < total; i++) {
    if (turn == rank) {
      if (i >= ring.stages) {
        barrier_wait(ring.empty_barrier(), parities >> ring.stage & 1u);
        parities ^= 1u << ring.stage;
      }
      const int block = k_stage * shape.x_stage_blocks;
      if (shape.cluster > 1) {
        copy_box_to_cluster(ring.base(), map, 0, 0, block, ring.full_barrier(), everybody, policy);
      } else {
        copy_box(ring.base(), map, 0, 0, block, ring.full_barrier(), policy);
      }
    }
    ring.advance();
    if (++turn == shape.cluster) turn = 0;
    if (++k_stage == counts.x_stages) k_stage = 0;
  }
}

template <int kN, int kParts>
__device__ __forceinline__ void store(const float (&sums)[kParts][kN / 2], const Shape& shape,
                                      const uint16_t* bias, uint16_t* out, int first_row) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int part = 0; part < kParts; part++) {
#pragma unroll
    for (int j = 0; j < kN / 8; j++) {
      const int n = first_row + part * kN + 8 * j + lane % 4 * 2;
      if (n >= shape.out_features) continue;
      float low = 0, high = 0;
      if (bias != nullptr) low = bf16_to_float(bias[n]), high = bf16_to_float(bias[n + 1]);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int token = warp * 16 + lane / 4 + half * 8;
        if (token >= shape.tokens) continue;
        float first = sums[part][4 * j + 2 * half], second = sums[part][4 * j + 2 * half + 1];
        if (bias != nullptr) first = first + low, second = second + high;
        *reinterpret_cast<uint32_t*>(out + token * shape.out_stride + n) =
            static_cast<uint32_t>(float_to_bf16(first)) |
            static_cast<uint32_t>(float_to_bf16(second)) << 16;
      }
    }
  }
}

// Fragments of x, a block of 64 k at a time: four steps of a warp's 16 rows. A warp whose rows lie
// beyond the tokens keeps zeros and takes no part.
struct XFeed {
  StageRing ring;
  uint32_t lane_offset;
  uint32_t block_bytes;
  int stage_blocks, cluster;
  bool active;
  int to_hand_back;  // stages that will be written again; a block that is done must not be told
  int turn;          // who writes the stage in use again
  int left = 0;      // blocks of it
  uint32_t block = 0;

  __device__ __forceinline__ void load(uint32_t (&steps)[kSteps][4]) {
    if (!active) return;
    if (left == 0) {
      barrier_wait(ring.full_barrier(), ring.parity);
      // For the next round, which begins when all warps have handed this stage back.
      if (threadIdx.x == 0) {
        barrier_expect(ring.full_barrier(), static_cast<uint32_t>(ring.stage_bytes));
      }
      block = ring.base() + lane_offset;
      left = stage_blocks;
    }
#pragma unroll
    for (uint32_t step = 0; step < kSteps; step++) load_matrices(steps[step], block ^ step << 5);
    block += block_bytes;
    if (--left == 0) finish_stage();
  }
  __device__ __forceinline__ void finish_stage() {
    if (to_hand_back-- > 0 && threadIdx.x % 32 == 0) {
      barrier_arrive_at(ring.empty_barrier(), static_cast<uint32_t>(turn));
    }
    if (++turn == cluster) turn = 0;
    ring.advance();
    left = 0;
  }
};

// The operands of the weights, a block of 64 k at a time. A stage is handed back when the block
// after its last one is under way, for then the last one is multiplied.
template <uint32_t kBlockBytes>
struct WeightFeed {
  StageRing ring;
  int stage_blocks;
  int to_hand_back;
  int left = 0;
  uint32_t operand = 0;                                  // its low half, the same in every lane
  uint32_t in_use = 0, finished = 0, just_finished = 0;  // barriers of stages, 0: none

  __device__ __forceinline__ void next_block() {
    if (left == 0) {
      just_finished = in_use;
      barrier_wait(ring.full_barrier(), ring.parity);
      operand = static_cast<uint32_t>(wgmma_operand(ring.base()));
      in_use = ring.empty_barrier();
      ring.advance();
      left = stage_blocks;
    } else {
      operand += kBlockBytes >> 4;
    }
    left--;
    // Said to be uniform, so that the operands are made in uniform registers, where the steps
    // follow each other without a bubble.
    operand = __shfl_sync(~0u, operand, 0);
  }
  __device__ __forceinline__ void block_before_is_done() {
    hand_back(finished);
    finished = just_finished;
    just_finished = 0;
  }
  __device__ __forceinline__ void all_is_done() {
    hand_back(finished);
    hand_back(in_use);
    finished = in_use = 0;
    left = 0;
  }
  __device__ __forceinline__ void hand_back(uint32_t barrier) {
    if (barrier != 0 && to_hand_back-- > 0 && threadIdx.x % 32 == 0) barrier_arrive(barrier);
  }
};

template <int kN, int kParts>
__device__ __forceinline__ void multiply_all(const StageRing& weights, const StageRing& x,
                                             const Shape& shape, const Counts& counts,
                                             const uint16_t* bias, uint16_t* out) {
  constexpr uint32_t kHigh = static_cast<uint32_t>(kOperandHigh >> 32);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int token = warp * 16 + (lane & 15);
  // The last tile of 8 may be alone in its 16: its rows then stand for those that are missing.
  const int row = token < shape.x_rows ? token : token - 8;
  XFeed x_feed{x,
               static_cast<uint32_t>(row * kRowBytes + ((lane >> 4 ^ (row & 7)) << 4)),
               static_cast<uint32_t>(shape.x_rows * kRowBytes),
               shape.x_stage_blocks,
               shape.cluster,
               warp * 16 < shape.x_rows,
               counts.passes * counts.x_stages - shape.x_stages,
               shape.x_stages % shape.cluster};
  WeightFeed<kN * kParts * kRowBytes> weight_feed{
      weights, shape.weight_stage_blocks,
      counts.passes * counts.weight_stages - shape.weight_stages};
  for (int pass = 0; pass < counts.passes; pass++) {
    float sums[kParts][kN / 2] = {};
    uint32_t fragments[kRound][kSteps][4] = {};
    x_feed.load(fragments[0]);
    x_feed.load(fragments[1]);
    weight_feed.next_block();
#pragma unroll 1
    for (int round = 1; round <= counts.rounds; round++) {
#pragma unroll
      for (int block = 0; block < kRound; block++) {
#pragma unroll
        for (int part = 0; part < kParts; part++) settle(sums[part]);
        wgmma_fence();
        // Around the loop the compiler forgets that the operand is uniform.
        const uint32_t low =
            block == 0 ? __shfl_sync(~0u, weight_feed.operand, 0) : weight_feed.operand;
        const uint64_t operand = uint64_t{kHigh} << 32 | low;
#pragma unroll
        for (int step = 0; step < kSteps; step++) {
#pragma unroll
          for (int part = 0; part < kParts; part++) {
            wgmma_step<kN>(sums[part], fragments[block][step],
                           operand + (part * kN * kRowBytes + step * 32) / 16);
          }
        }
        wgmma_commit();
        // What comes next is made ready while these multiply.
        if (block + 2 < kRound || round < counts.rounds) {
          x_feed.load(fragments[(block + 2) % kRound]);
        }
        if (block + 1 < kRound || round < counts.rounds) weight_feed.next_block();
        wgmma_wait<1>();
        weight_feed.block_before_is_done();
      }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < kParts; part++) settle(sums[part]);
    weight_feed.all_is_done();
    if (x_feed.active && x_feed.left > 0) x_feed.finish_stage();
    const int group = pass * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
    store<kN, kParts>(sums, shape, bias, out, group * kN * kParts);
  }
}

template <int kN, int kParts>
__global__ void __launch_bounds__(kThreads, kN* kParts <= 128 ? 2 : 1)
    decode_matmul_warpgroup(const __grid_constant__ CUtensorMap weight_map,
                            const __grid_constant__ CUtensorMap x_map,
                            const uint16_t* __restrict__ bias, uint16_t* __restrict__ out,
                            const __grid_constant__ Shape shape) {
  constexpr int kRows = kN * kParts;
  extern __shared__ uint8_t shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const bool copies = threadIdx.x % 32 == 0;
  const uint32_t start = (shared_address(shared) + kBarrierBytes - 1) & ~(kBarrierBytes - 1u);
  const int weight_stage_bytes = shape.weight_stage_blocks * kRows * kRowBytes;
  const StageRing weights{start, start + 8 * kMaxStages, start + kBarrierBytes, weight_stage_bytes,
                          shape.weight_stages};
  const StageRing x{start + 16 * kMaxStages, start + 24 * kMaxStages,
                    weights.data + static_cast<uint32_t>(shape.weight_stages * weight_stage_bytes),
                    shape.x_stage_blocks * shape.x_rows * kRowBytes, shape.x_stages};
  const Counts counts = counts_of(shape);
  WeightCopies weight_copies{weights,
                             &weight_map,
                             shape.weight_stage_blocks,
                             counts.weight_stages,
                             static_cast<int>(blockIdx.x) * kRows,
                             static_cast<int>(gridDim.x) * kRows,
                             0};
  const int total = counts.passes * counts.weight_stages;
  const int early = total < weights.stages ? total : weights.stages;
  if (warp == kMultiplyWarps && copies) {
    for (uint32_t i = 0; i < static_cast<uint32_t>(weights.stages); i++) {
      barrier_init(weights.full + 8u * i, 1);
      barrier_init(weights.empty + 8u * i, kMultiplyWarps);
    }
    for (uint32_t i = 0; i < static_cast<uint32_t>(x.stages); i++) {
      barrier_init(x.full + 8u * i, 1);
      barrier_expect(x.full + 8u * i, static_cast<uint32_t>(x.stage_bytes));
      barrier_init(x.empty + 8u * i, (shape.x_rows + 15) / 16 * shape.cluster);
    }
    barrier_init_fence();
    if (shape.begin_next == 0) let_next_kernel_begin();
    weight_copies.policy = evict_first_policy();
    for (int i = 0; i < early; i++) weight_copies.copy_next();
  } else if (warp == kMultiplyWarps + 1 && copies) {
    prefetch_map(&x_map);
  }
  __syncwarp();
  if (shape.cluster > 1) {
    synchronise_cluster();  // nobody writes to a block whose barriers are not there yet
  } else {
    __syncthreads();
  }
  if (warp == kMultiplyWarps) {
    if (!copies) return;
    for (int i = early; i < total; i++) {
      if (i == shape.begin_next) let_next_kernel_begin();
      // The ring has turned once since the stage was filled: its parity is that of its first use.
      barrier_wait(weight_copies.ring.empty_barrier(), weight_copies.ring.parity ^ 1u);
      weight_copies.copy_next();
    }
    let_next_kernel_begin();
    return;
  }
  wait_for_earlier_kernels();  // they write x and may still read what is written here
  if (warp == kMultiplyWarps + 1) {
    if (copies) copy_x(x, shape, counts, &x_map);
    return;
  }
  multiply_all<kN, kParts>(weights, x, shape, counts, bias, out);
}

template <int kN, int kParts>
Status launch(const DecodeMatmulPlan& plan, const DecodeMatmulOperands& operands,
              cudaStream_t stream) {
  EXACT_ASSIGN(const CUtensorMap weight_map,
               matrix_map(operands.weight, plan.out_features, plan.in_features, plan.in_features,
                          plan.rows, plan.stage_blocks));
  EXACT_ASSIGN(const CUtensorMap x_map,
               matrix_map(operands.x, plan.tokens, plan.in_features, operands.x_stride,
                          plan.token_tiles * 8, plan.x_stage_blocks));
  const Shape shape{plan.tokens,
                    static_cast<int>(plan.out_features),
                    static_cast<int>(plan.in_features / kBlockK),
                    static_cast<int>((plan.out_features + plan.rows - 1) / plan.rows),
                    plan.stage_blocks,
                    plan.stages,
                    plan.token_tiles * 8,
                    plan.x_stage_blocks,
                    plan.x_stages,
                    plan.cluster,
                    plan.begin_next,
                    operands.out_stride};
  return launch_overlapping(plan, kThreads, stream, decode_matmul_warpgroup<kN, kParts>, weight_map,
                            x_map, operands.bias, operands.out, shape);
}

}  // namespace

Status launch_warpgroup_form(const DecodeMatmulPlan& plan, const DecodeMatmulOperands& operands,
                             cudaStream_t stream) {
  // A stage is waited for before the one before the last is handed back.
  if (plan.stages < 2 || (plan.stages < 3 && plan.stage_blocks == 1) || plan.x_stages < 2) {
    return Status(Code::invalid, plan.to_string() + ": too few stages");
  }
  switch (plan.rows) {
    case 8:
      return launch<8, 1>(plan, operands, stream);
    case 16:
      return launch<16, 1>(plan, operands, stream);
    case 24:
      return launch<24, 1>(plan, operands, stream);
    case 32:
      return launch<32, 1>(plan, operands, stream);
    case 40:
      return launch<40, 1>(plan, operands, stream);
    case 48:
      return launch<48, 1>(plan, operands, stream);
    case 56:
      return launch<56, 1>(plan, operands, stream);
    case 64:
      return launch<64, 1>(plan, operands, stream);
    case 80:
      return launch<40, 2>(plan, operands, stream);
    case 96:
      return launch<48, 2>(plan, operands, stream);
    case 112:
      return launch<56, 2>(plan, operands, stream);
    case 128:
      return launch<64, 2>(plan, operands, stream);
    case 144:
      return launch<48, 3>(plan, operands, stream);
    case 168:
      return launch<56, 3>(plan, operands, stream);
    case 192:
      return launch<64, 3>(plan, operands, stream);
    case 224:
      return launch<56, 4>(plan, operands, stream);
    case 256:
      return launch<64, 4>(plan, operands, stream);
    default:
      return Status(Code::unsupported, plan.to_string() + ": no kernel for so many rows a block");
  }
}

}  // namespace exact::cuda
