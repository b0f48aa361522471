// prefill_attention: out = softmax(q k^T * c) v, causal, over paged keys and values        rule N5
// shapes  query, out (rows, H * E) bf16 with strides; tiles of 128 rows of one sequence; E 64, 128
// order   key blocks downwards from the last row's; scores one chain over E (wgmma, k16 ascending);
//         a row sum a quad lane: fma(l, f, p) with the block's first column, then plain adds,
//         columns ascending - which is how a thread of wgmma's accumulator holds them; O one chain
//         over a block's keys, continued from O * f
// rounds  p to bf16 for O alone; O * (1 / sum) to bf16 at the end
// launch  one block a multiprocessor takes tiles in turn, heaviest first. A warp copies queries,
//         keys and values (prefill_tiles.cuh); two warpgroups have 64 query rows each and keep
//         queries, scores, probabilities and O in registers. While a warpgroup takes the softmax of
//         a block, the tensor cores work on the block before and for the other warpgroup.
//
// Blocks whose keys are all later than a row leave no trace in it: max stays -inf, p = f = 0.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "kernels/contract/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/prefill_tiles.cuh"

namespace exact::cuda {
namespace {

using namespace prefill;

constexpr int kThreads = (kGroups + 1) * 128;
constexpr int kWarps = kGroups * 4;  // that compute
constexpr int kGroupBarrier = 1;     // and the next: of one warpgroup
constexpr int kTurnBarrier = 3;      // and the next: whose turn it is
constexpr float kMasked = -__builtin_huge_valf();
constexpr bool kPingPong = true;
constexpr bool kSkipRescale = true;

// Two rows of a thread: lane / 4 and lane / 4 + 8 of its warp's sixteen.
struct RowPair {
  float max[2] = {kMasked, kMasked};
  float sum[2] = {0.0f, 0.0f};  // of this quad lane
};

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The compiler can see that all threads of a warp go the same way: wgmma needs it.
__device__ __forceinline__ int uniform(int value) {
  return __shfl_sync(~0u, value, 0);
}
__device__ __forceinline__ Work uniform(const Work& work) {
  return {uniform(work.first_row), uniform(work.rows), uniform(work.first_position),
          uniform(work.last_written), uniform(work.head)};
}

// Scores -> probabilities, in place; `factor`: what O and the sums before are multiplied with.
// kCount scores of a thread: [4 g + 2 h + e] is row h, column 8 g + 2 t + e.
template <int kCount>
__device__ __forceinline__ void softmax(float (&scores)[kCount], RowPair& rows, float (&factor)[2],
                                        float c) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float max = rows.max[h];
#pragma unroll
    for (int g = 0; g < kCount; g += 4)
      max = fmaxf(fmaxf(max, scores[g + 2 * h]), scores[g + 2 * h + 1]);
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
    const float finite_max = max == kMasked ? 0.0f : max;  // nothing is seen yet
    factor[h] = contract::rescale_factor(rows.max[h], finite_max, c);
    rows.max[h] = max;
    const float scaled_max = finite_max * c;
    float sum = rows.sum[h];
#pragma unroll
    for (int g = 0; g < kCount; g += 4) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float p = contract::probability(scores[g + 2 * h + e], c, scaled_max);
        sum = g == 0 && e == 0 ? contract::fma_rn(sum, factor[h], p) : sum + p;
        scores[g + 2 * h + e] = p;
      }
    }
    rows.sum[h] = sum;
  }
}

// One warpgroup: 64 rows of every tile.
template <int kHeadWidth>
class Consumer {
  using Tile = Shared<kHeadWidth>;
  static constexpr int kKeys = Tile::kKeys;
  static constexpr int kScores = kKeys / 2;  // of a thread
  static constexpr int kOut = kHeadWidth / 2;
  static constexpr int kQuerySteps = kHeadWidth / 16;
  static constexpr int kValueSteps = kKeys / 16;

 public:
  __device__ Consumer(Tile& shared, const AttentionInputs& inputs, int thread)
      : shared_(shared),
        inputs_(inputs),
        group_(uniform(thread / 128)),
        warp_(uniform(thread / 32 % 4)),
        lane_(thread % 32),
        c_(contract::score_scale(kHeadWidth)) {}

  __device__ void run() {
    uint32_t query_parity = 0;
    if (kPingPong && group_ == 1) named_barrier_arrive(kTurnBarrier, kGroups * 128);
    for (;;) {
      barrier_wait(shared_address(&shared_.query_full), query_parity);
      query_parity ^= 1u;
      const Work work = uniform(shared_.work);
      if (work.rows == 0) break;
      load_query();
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_address(&shared_.query_empty));
      attend(work);
    }
    copies_out_wait();
  }

 private:
  // Matrices (rows 0-7, k low), (rows 8-15, k low), (0-7, high), (8-15, high) of each k16.
  __device__ __forceinline__ void load_query() {
    const int row = group_ * kGroupRows + warp_ * 16 + (lane_ & 15);
    const uint32_t address = shared_address(shared_.query) +
                             static_cast<uint32_t>(row * Tile::kQueryPitch + (lane_ >> 4) * 16);
#pragma unroll
    for (int step = 0; step < kQuerySteps; step++)
      load_matrices(query_[step], address + static_cast<uint32_t>(step * 32));
  }

  __device__ __forceinline__ void attend(const Work& work) {
    const int first = group_ * kGroupRows;
    const int rows = min(work.rows - first, kGroupRows);
    const int tile_block = (work.first_position + work.rows - 1) / kKeys;
    const int own_block = rows > 0 ? (work.first_position + first + rows - 1) / kKeys : -1;
    for (int block = tile_block; block > own_block; block--) skip();
    if (rows <= 0) return;
    // Rows of this thread, and the first block without a masked score.
    const int position = work.first_position + first + warp_ * 16 + lane_ / 4;
    const int first_masked = (work.first_position + first + 1) / kKeys;
    const int written = work.last_written + 1 - own_block * kKeys;
    float out[kOut] = {};
    float scores[kScores];
    float factor[2];
    uint32_t probabilities[kValueSteps][4];
    RowPair state;

    barrier_wait(shared_address(&shared_.keys_full[turn_.stage]), turn_.parity);
    begin_turn();
    start_scores(scores, turn_.stage);
    end_turn();
    wgmma_wait<0>();
    settle(scores);
    release(shared_.keys_empty[turn_.stage]);
    mask(scores, position - own_block * kKeys);
    softmax(scores, state, factor, c_);
    pack(probabilities, scores);
    barrier_wait(shared_address(&shared_.values_full[turn_.stage]), turn_.parity);
    if (written < kKeys) clear_values(written);

    for (int block = own_block - 1; block >= 0; block--) {
      const Turn now = turn_;
      turn_.advance();
      barrier_wait(shared_address(&shared_.keys_full[turn_.stage]), turn_.parity);
      begin_turn();
      start_scores(scores, turn_.stage);
      barrier_wait(shared_address(&shared_.values_full[now.stage]), now.parity);
      start_out(out, probabilities, now.stage);
      end_turn();
      wgmma_wait<1>();
      settle(scores);
      release(shared_.keys_empty[turn_.stage]);
      if (block >= first_masked) mask(scores, position - block * kKeys);
      softmax(scores, state, factor, c_);
      wgmma_wait<0>();
      settle(out);
      release(shared_.values_empty[now.stage]);
      if (!kSkipRescale || __any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < kOut; i++) out[i] = out[i] * factor[i / 2 % 2];
      }
      pack(probabilities, scores);
    }
    barrier_wait(shared_address(&shared_.values_full[turn_.stage]), turn_.parity);
    start_out(out, probabilities, turn_.stage);
    wgmma_wait<0>();
    settle(out);
    release(shared_.values_empty[turn_.stage]);
    turn_.advance();
    store(out, state, work, first + warp_ * 16);
  }

  // The warpgroups start their products in turns, so that one has its softmax while the tensor
  // cores work for the other. Each takes a turn for each block of the tile.
  __device__ __forceinline__ void begin_turn() {
    if (kPingPong) named_barrier_sync(kTurnBarrier + group_, kGroups * 128);
  }
  __device__ __forceinline__ void end_turn() {
    if (kPingPong) named_barrier_arrive(kTurnBarrier + 1 - group_, kGroups * 128);
  }

  // A block that no row of this warpgroup sees.
  __device__ __forceinline__ void skip() {
    begin_turn();
    end_turn();
    barrier_wait(shared_address(&shared_.keys_full[turn_.stage]), turn_.parity);
    release(shared_.keys_empty[turn_.stage]);
    barrier_wait(shared_address(&shared_.values_full[turn_.stage]), turn_.parity);
    release(shared_.values_empty[turn_.stage]);
    turn_.advance();
  }

  __device__ __forceinline__ void release(const uint64_t& empty) {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&empty));
  }

  __device__ __forceinline__ void start_scores(float (&scores)[kScores], int stage) {
    const uint32_t keys = shared_address(shared_.keys[stage]);
    settle(scores);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kQuerySteps; step++) {
      const uint32_t at =
          keys + static_cast<uint32_t>(step / 4 * Tile::kBlockBytes + step % 4 * 32);
      wgmma<false>(scores, query_[step], tile_descriptor(at, 16, 1024), step != 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void start_out(float (&out)[kOut],
                                            uint32_t (&probabilities)[kValueSteps][4], int stage) {
    const uint32_t values = shared_address(shared_.values[stage]);
    settle(out);
    settle(probabilities);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kValueSteps; step++) {
      const uint32_t at = values + static_cast<uint32_t>(step * 16 * kRowBytes);
      wgmma<true>(out, probabilities[step], tile_descriptor(at, Tile::kBlockBytes, 1024), true);
    }
    wgmma_commit();
  }

  // `position`: of this thread's first row, counted from the block's first key.
  __device__ __forceinline__ void mask(float (&scores)[kScores], int position) {
    const int last = position - lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < kScores; i++) {
      const int column = i / 4 * 8 + i % 2;
      if (column > last + i / 2 % 2 * 8) scores[i] = kMasked;
    }
  }

  __device__ __forceinline__ void pack(uint32_t (&probabilities)[kValueSteps][4],
                                       const float (&scores)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores; i += 2)
      probabilities[i / 8][i / 2 % 4] = pack_bf16(scores[i], scores[i + 1]);
  }

  // Slots that no token has written hold anything, and 0 * NaN is NaN: zeros from `written` on.
  // Both warpgroups may do so: they store the same.
  __device__ __forceinline__ void clear_values(int written) {
    const int thread = warp_ * 32 + lane_;
    const uint4 zeros{0, 0, 0, 0};
    for (int i = thread; i < (kKeys - written) * (kRowBytes / 16) * Tile::kColumnBlocks; i += 128) {
      const int chunk = i % (kRowBytes / 16), row = i / (kRowBytes / 16);
      const int slot = written + row / Tile::kColumnBlocks;
      *reinterpret_cast<uint4*>(shared_.values[turn_.stage] +
                                row % Tile::kColumnBlocks * Tile::kBlockBytes + slot * kRowBytes +
                                chunk * 16) = zeros;
    }
    shared_stores_fence();
    named_barrier_sync(kGroupBarrier + group_, 128);
  }

  // Each warp its sixteen rows: by way of shared memory, so that whole rows leave at once.
  __device__ __forceinline__ void store(const float (&out)[kOut], const RowPair& state,
                                        const Work& work, int first) {
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = state.sum[h];
      sum = sum + __shfl_xor_sync(~0u, sum, 2);
      sum = sum + __shfl_xor_sync(~0u, sum, 1);
      inverse[h] = 1.0f / sum;
    }
    const int row = first + (lane_ & 15);
    const uint32_t address =
        shared_address(shared_.out) + static_cast<uint32_t>(row * Tile::kQueryPitch);
    copies_out_wait_read();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kOut; i += 8) {
      store_matrices(address + static_cast<uint32_t>(i * 4 + (lane_ >> 4) * 16),
                     pack_bf16(out[i] * inverse[0], out[i + 1] * inverse[0]),
                     pack_bf16(out[i + 2] * inverse[1], out[i + 3] * inverse[1]),
                     pack_bf16(out[i + 4] * inverse[0], out[i + 5] * inverse[0]),
                     pack_bf16(out[i + 6] * inverse[1], out[i + 7] * inverse[1]));
    }
    shared_stores_fence();
    __syncwarp();
    if (lane_ < 16 && row < work.rows) {
      copy_bytes_out(
          inputs_.out + (work.first_row + row) * inputs_.out_stride + work.head * kHeadWidth,
          address, kHeadWidth * 2);
    }
    copies_out_commit();
  }

  Tile& shared_;
  const AttentionInputs& inputs_;
  int group_, warp_, lane_;
  float c_;
  Turn turn_;
  uint32_t query_[kQuerySteps][4];
};

template <int kHeadWidth>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_attention(const __grid_constant__ AttentionInputs inputs) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  auto& shared = *reinterpret_cast<Shared<kHeadWidth>*>(bytes);
  if (threadIdx.x == 0) {
    barrier_init(shared_address(&shared.query_full), 1);
    barrier_init(shared_address(&shared.query_empty), kWarps);
    for (int i = 0; i < kStages; i++) {
      barrier_init(shared_address(&shared.keys_full[i]), 1);
      barrier_init(shared_address(&shared.keys_empty[i]), kWarps);
      barrier_init(shared_address(&shared.values_full[i]), 1);
      barrier_init(shared_address(&shared.values_empty[i]), kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= kGroups * 128) {
    give_registers<40>();
    if (thread < kGroups * 128 + 32) Producer<kHeadWidth>(shared, inputs, thread % 32).run();
  } else {
    take_registers<232>();
    Consumer<kHeadWidth>(shared, inputs, thread).run();
  }
}

template <int kHeadWidth>
cudaError_t launch(const AttentionInputs& inputs, int multiprocessors, cudaStream_t stream) {
  const auto kernel = prefill_attention<kHeadWidth>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(sizeof(Shared<kHeadWidth>)));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(
      std::min(multiprocessors, inputs.step.query_tiles * inputs.query_heads)));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Shared<kHeadWidth>);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, inputs);
}

}  // namespace

bool prefill_attention_covers(int32_t head_width) {
  return head_width == 64 || head_width == 128;
}

Status launch_prefill_attention(const AttentionInputs& inputs, int multiprocessors,
                                cudaStream_t stream) {
  const int32_t head_width = inputs.pages.head_width;
  if (!prefill_attention_covers(head_width)) {
    return Status(Code::unsupported, "prefill_attention: the head width is " +
                                         std::to_string(head_width) + "; it must be 64 or 128");
  }
  if (inputs.step.query_tiles == 0) return {};
  const cudaError_t error = head_width == 64 ? launch<64>(inputs, multiprocessors, stream)
                                             : launch<128>(inputs, multiprocessors, stream);
  if (error == cudaSuccess) return {};
  return Status(Code::device, std::string("prefill_attention: ") + cudaGetErrorString(error));
}

}  // namespace exact::cuda
