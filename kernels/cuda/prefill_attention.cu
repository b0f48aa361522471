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
constexpr float kMasked = -__builtin_huge_valf();

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
  // Whether two blocks of scores fit into the registers.
  static constexpr bool kAhead = kHeadWidth == 128;

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
    first_masked_ = (work.first_position + first + 1) / kKeys;
    position_ = work.first_position + first + warp_ * 16 + lane_ / 4;
    const int written = work.last_written + 1 - own_block * kKeys;
    RowPair state;
    float out[kOut] = {};
    float scores[kAhead ? 2 : 1][kScores], factor[2];
    uint32_t probabilities[kValueSteps][4];

    int block = own_block;
    start_scores(scores[0], true);
    if constexpr (kAhead) start_scores(scores[1], block > 0);  // else again, for nobody
    wgmma_wait<0>();
    settle(scores[0]);
    if constexpr (kAhead) settle(scores[1]);
    release_keys();
    if (kAhead && block > 0) release_keys();
    if (block >= first_masked_) mask(scores[0], block);
    softmax(scores[0], state, factor, c_);
    pack(probabilities, scores[0]);
    if (written < kKeys) clear_values(written);
    if constexpr (kAhead) {
      for (; block > 2; block -= 2) {
        step_ahead<true>(out, probabilities, scores[0], scores[1], state, block);
        step_ahead<true>(out, probabilities, scores[1], scores[0], state, block - 1);
      }
      if (block == 2) {
        step_ahead<true>(out, probabilities, scores[0], scores[1], state, 2);
        step_ahead<false>(out, probabilities, scores[1], scores[0], state, 1);
      } else if (block == 1) {
        step_ahead<false>(out, probabilities, scores[0], scores[1], state, 1);
      }
    } else {
      for (; block > 0; block--) step(out, probabilities, scores[0], state, block);
    }
    start_out(out, probabilities);
    wgmma_wait<0>();
    settle(out);
    release_values();
    store(out, state, work, first + warp_ * 16);
  }

  // Adds the values of `block`, whose probabilities are packed, and takes the softmax of the block
  // below. Its scores are in `next` already: the tensor cores go on to those of the block below it,
  // in `free`, and have work all through the softmax.
  template <bool kMore>
  __device__ __forceinline__ void step_ahead(float (&out)[kOut],
                                             uint32_t (&probabilities)[kValueSteps][4],
                                             float (&free)[kScores], float (&next)[kScores],
                                             RowPair& state, int block) {
    start_out(out, probabilities);
    if constexpr (kMore) start_scores(free, true);
    float factor[2];
    softmax_of(next, state, factor, block - 1);
    wgmma_wait<0>();
    settle(out);
    release_values();
    if constexpr (kMore) {
      settle(free);
      release_keys();
    }
    rescale(out, factor);
    pack(probabilities, next);
  }

  // The same with registers for one block of scores.
  __device__ __forceinline__ void step(float (&out)[kOut],
                                       uint32_t (&probabilities)[kValueSteps][4],
                                       float (&scores)[kScores], RowPair& state, int block) {
    start_scores(scores, true);
    start_out(out, probabilities);
    wgmma_wait<1>();
    settle(scores);
    release_keys();
    float factor[2];
    softmax_of(scores, state, factor, block - 1);
    wgmma_wait<0>();
    settle(out);
    release_values();
    rescale(out, factor);
    pack(probabilities, scores);
  }

  __device__ __forceinline__ void softmax_of(float (&scores)[kScores], RowPair& state,
                                             float (&factor)[2], int block) {
    if (block >= first_masked_) mask(scores, block);
    softmax(scores, state, factor, c_);
    // A sum is never negative. The question keeps the compiler from moving the wait for the tensor
    // cores, which follows, to before its answer.
    if (__any_sync(~0u, state.sum[0] < 0.0f || state.sum[1] < 0.0f)) __trap();
  }

  // Mostly the maxima stay, and times 1 changes nothing.
  __device__ __forceinline__ void rescale(float (&out)[kOut], const float (&factor)[2]) {
    if (!__any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kOut; i++) out[i] = out[i] * factor[i / 2 % 2];
  }

  // A block that no row of this warpgroup sees.
  __device__ __forceinline__ void skip() {
    barrier_wait(shared_address(&shared_.keys_full[keys_.stage]), keys_.parity);
    keys_.advance();
    release_keys();
    barrier_wait(shared_address(&shared_.values_full[values_.stage]), values_.parity);
    values_.advance();
    release_values();
  }

  // The oldest stage that has not been released.
  __device__ __forceinline__ void release_keys() {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.keys_empty[oldest_keys_]));
    oldest_keys_ = (oldest_keys_ + 1) % kStages;
  }
  __device__ __forceinline__ void release_values() {
    __syncwarp();
    if (lane_ == 0) barrier_arrive(shared_address(&shared_.values_empty[oldest_values_]));
    oldest_values_ = (oldest_values_ + 1) % kStages;
  }

  __device__ __forceinline__ void start_scores(float (&scores)[kScores], bool fresh) {
    if (fresh) barrier_wait(shared_address(&shared_.keys_full[keys_.stage]), keys_.parity);
    const uint64_t keys = tile_descriptor(shared_address(shared_.keys), 16, 1024) +
                          static_cast<uint64_t>(keys_.stage * (Tile::kStageBytes / 16));
    if (fresh) keys_.advance();
    settle(scores);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kQuerySteps; step++) {
      const int bytes = step / 4 * Tile::kBlockBytes + step % 4 * 32;
      wgmma<false>(scores, query_[step], keys + static_cast<uint64_t>(bytes / 16), step != 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void start_out(float (&out)[kOut],
                                            uint32_t (&probabilities)[kValueSteps][4]) {
    barrier_wait(shared_address(&shared_.values_full[values_.stage]), values_.parity);
    const uint64_t values =
        tile_descriptor(shared_address(shared_.values), Tile::kBlockBytes, 1024) +
        static_cast<uint64_t>(values_.stage * (Tile::kStageBytes / 16));
    values_.advance();
    settle(out);
    settle(probabilities);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kValueSteps; step++) {
      wgmma<true>(out, probabilities[step], values + static_cast<uint64_t>(step * kRowBytes), true);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void mask(float (&scores)[kScores], int block) {
    const int last = position_ - block * kKeys - lane_ % 4 * 2;
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
    barrier_wait(shared_address(&shared_.values_full[values_.stage]), values_.parity);
    const int thread = warp_ * 32 + lane_;
    const uint4 zeros{0, 0, 0, 0};
    for (int i = thread; i < (kKeys - written) * (kRowBytes / 16) * Tile::kColumnBlocks; i += 128) {
      const int chunk = i % (kRowBytes / 16), row = i / (kRowBytes / 16);
      const int slot = written + row / Tile::kColumnBlocks;
      *reinterpret_cast<uint4*>(shared_.values[values_.stage] +
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
  Turn keys_, values_;
  int oldest_keys_ = 0, oldest_values_ = 0;
  int position_ = 0;      // of this thread's first row
  int first_masked_ = 0;  // the blocks from this one on have scores to mask
  uint32_t query_[kQuerySteps][4];
};

template <int kHeadWidth>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_attention(const __grid_constant__ AttentionInputs inputs) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  auto& shared = *reinterpret_cast<Shared<kHeadWidth>*>(bytes);
  if (threadIdx.x == 0) {
    barrier_init(shared_address(&shared.query_full), kCopyWarps);
    barrier_init(shared_address(&shared.query_empty), kWarps);
    for (int i = 0; i < kStages; i++) {
      barrier_init(shared_address(&shared.keys_full[i]), kCopyWarps / 2);
      barrier_init(shared_address(&shared.keys_empty[i]), kWarps);
      barrier_init(shared_address(&shared.values_full[i]), kCopyWarps / 2);
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
    Producer<kHeadWidth>(shared, inputs, uniform(thread / 32 % 4), thread % 32).run();
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
