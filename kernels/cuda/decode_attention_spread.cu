// decode_attention, spread over the GPU: for few sequences with long prefixes              rule N5
// shapes  as the streamed form; scratch holds fp32 scores [row][key] and maxima [row][key block],
//         a row being a query head of a sequence
// order   the scores need no chain across keys and O none across columns. scores: every key block
//         in parallel. columns: 16 columns of O and the heads of a kv head are one chain over all
//         keys, block by block from the own one down, ascending within a block; beside it one warp
//         adds the lanes' sums in the same order
// rounds  p to bf16 for the second product, out at the end
// launch  scores: a warp a key block; it copies 16 KB of keys, multiplies and is done.
//         columns: a block a (sequence, kv head, 16 columns). One warp runs the chain, one the
//         sums; one copies values to a ring, four turn scores into probabilities, 64 keys each.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "kernels/cuda/decode_attention.cuh"

namespace exact::cuda {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr int kMaxKeysPadding = contract::kMaxKeyBlock;
constexpr int kMinKeyBlock = 64;
constexpr int kRowsPerPass = 256;  // query heads that the scratch has room for, or one sequence's

// What the two kernels share in device memory.
struct Scratch {
  float* scores;  // [rows][blocks * kKeys]
  float* maxima;  // [rows][blocks]
  int blocks;     // key blocks of the longest context

  template <int kHeadWidth>
  __device__ float* scores_of(int row) const {
    return scores + int64_t{row} * blocks * HeadShape<kHeadWidth>::kKeys;
  }
  __device__ float* maxima_of(int row) const { return maxima + int64_t{row} * blocks; }
};

// ---- scores

constexpr int kScoringWarps = 4;

template <int kHeadWidth>
__device__ void copy_keys(uint32_t piece, uint32_t barrier, const AttentionInputs& inputs,
                          const DecodeWork& work, int block, int keys, int lane) {
  using Head = HeadShape<kHeadWidth>;
  const LayerPages pages = inputs.pages;
  const int run_slots = min(pages.page_size, Head::kKeys);
  const int runs = Head::kKeys / run_slots;
  const int first = lane % runs * run_slots, column_block = lane / runs;
  if (lane == 0)
    barrier_expect(barrier, static_cast<uint32_t>(keys * kRowBytes * Head::kColumnBlocks));
  __syncwarp();
  const int count = min(run_slots, keys - first);
  if (column_block >= Head::kColumnBlocks || count <= 0) return;
  const int key = block * Head::kKeys + first;
  const int page = inputs.step.pages[work.first_page + key / pages.page_size];
  const uint16_t* from =
      pages.keys(page, work.kv_head, column_block) + key % pages.page_size * kColumnBlock;
  copy_run(
      piece + static_cast<uint32_t>(column_block * Head::kColumnBlockBytes + first * kRowBytes),
      from, static_cast<uint32_t>(count * kRowBytes), barrier, evict_first_policy());
}

template <int kHeadWidth, int kHeadTiles>
__global__ void __launch_bounds__(kScoringWarps * 32, 3)
    spread_scores(const __grid_constant__ AttentionInputs inputs, const DecodeShape shape,
                  const Scratch scratch) {
  using Head = HeadShape<kHeadWidth>;
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t piece = shared_address(shared) + static_cast<uint32_t>(warp * kPieceBytes);
  const uint32_t barrier =
      shared_address(shared) + static_cast<uint32_t>(kScoringWarps * kPieceBytes + warp * 8);
  if (lane == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
  }
  __syncwarp();
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  const auto sequence = static_cast<int>(blockIdx.z);
  const DecodeWork work =
      decode_work<kHeadTiles>(inputs, shape, sequence, static_cast<int>(blockIdx.y));
  const int block = static_cast<int>(blockIdx.x) * kScoringWarps + warp;
  const int last = work.position / Head::kKeys;
  if (work.nobody || block > last) return;
  const int seen = block == last ? work.position % Head::kKeys + 1 : Head::kKeys;
  copy_keys<kHeadWidth>(piece, barrier, inputs, work, block, (seen + 15) / 16 * 16, lane);
  uint32_t query[Head::kTiles][kHeadTiles][2];
  load_query<kHeadWidth, kHeadTiles>(query, inputs, work, lane);
  barrier_wait(barrier, 0);

  const int row = sequence * inputs.query_heads + work.first_head;
  float top[kHeadTiles][2];
  for (int tile = 0; tile < kHeadTiles; tile++) top[tile][0] = top[tile][1] = kMinusInfinity;
    // Two tiles of 16 keys at a time hide the latency of one chain behind the other.
#pragma unroll 1
  for (int key_tile = 0; key_tile < Head::kKeys / 16; key_tile += 2) {
    float scores[2][kHeadTiles][4] = {};
#pragma unroll
    for (int step = 0; step < Head::kTiles; step++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t keys[4];
        load_keys<kHeadWidth>(keys, piece, key_tile + i, step, lane);
#pragma unroll
        for (int tile = 0; tile < kHeadTiles; tile++)
          tensor_core_step(scores[i][tile], keys, query[step][tile][0], query[step][tile][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int head = tile * kHeadTile + lane % 4 * 2 + j % 2;
          const int key = (key_tile + i) * 16 + lane / 4 + j / 2 * 8;
          const float score = key < seen ? scores[i][tile][j] : kMinusInfinity;
          top[tile][j % 2] = fmaxf(top[tile][j % 2], score);
          if (head < work.heads)
            scratch.scores_of<kHeadWidth>(row + head)[block * Head::kKeys + key] = score;
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kHeadTiles; tile++) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float value = top[tile][j];
      for (int other = 4; other < 32; other *= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, other));
      const int head = tile * kHeadTile + lane * 2 + j;
      if (lane < 4 && head < work.heads) scratch.maxima_of(row + head)[block] = value;
    }
  }
}

// ---- columns

constexpr int kSegmentKeys = 64;   // what a warp turns into probabilities at a time
constexpr int kChunkSegments = 4;  // of a stage of the rings
constexpr int kSegmentSteps = kSegmentKeys / 16;
constexpr int kSegmentPairs = kSegmentKeys / 8;
constexpr int kValueStages = 8;
constexpr int kProbabilityStages = 3;
constexpr int kSliceBytes = 32;  // 16 columns of a key
constexpr int kValueStageBytes = kChunkSegments * kSegmentKeys * kSliceBytes;
enum ColumnWarp : int { kChainWarp = 0, kSumWarp = 1, kCopyWarp = 2, kProbabilityWarp = 3 };
constexpr int kColumnThreads = (kProbabilityWarp + kChunkSegments) * 32;

// A stage of probabilities: as fragments of P^T for the chain, in fp32 for the sums.
template <int kHeadTiles>
struct ProbabilityStage {
  uint2 fragments[kChunkSegments][kHeadTiles][kSegmentSteps][32];
  float4 terms[kChunkSegments][kHeadTiles][kSegmentPairs / 2][32];
  float factors[kChunkSegments][kHeadTiles * kHeadTile];
};

template <int kHeadTiles>
struct ColumnShared {
  uint8_t values[kValueStages][kValueStageBytes];
  ProbabilityStage<kHeadTiles> probabilities[kProbabilityStages];
  float inverse[kHeadTiles * kHeadTile];
  uint64_t values_full[kValueStages], values_empty[kValueStages];
  uint64_t probabilities_full[kProbabilityStages], probabilities_empty[kProbabilityStages];
};

// A place in a ring of kStages barriers.
template <int kStages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1u;
    }
  }
};

// Segments in the order of the chain: key blocks descending, ascending within a block.
template <int kHeadWidth>
struct Segments {
  static constexpr int kKeys = HeadShape<kHeadWidth>::kKeys;
  static constexpr int kInBlock = kKeys / kSegmentKeys;
  int last;  // the query's own key block

  __device__ int count() const { return (last + 1) * kInBlock; }
  __device__ int chunks() const { return (count() + kChunkSegments - 1) / kChunkSegments; }
  __device__ int block(int segment) const { return last - segment / kInBlock; }
  __device__ int first_key(int segment) const {
    return block(segment) * kKeys + segment % kInBlock * kSegmentKeys;
  }
};

__device__ __forceinline__ void copy_16_bytes(uint32_t to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(real ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// The 16 columns of values: two chunks of 16 bytes a key, the second half of every eight keys with
// its chunks exchanged, so that eight rows of a matrix lie in different banks. A lane has one chunk
// of one of 16 keys; keys beyond the context become zeros.
template <int kHeadWidth, int kHeadTiles>
__device__ void copy_values(ColumnShared<kHeadTiles>& shared, const AttentionInputs& inputs,
                            const DecodeWork& work, Segments<kHeadWidth> segments, int column_tile,
                            int lane) {
  constexpr int kGroups = kChunkSegments * kSegmentSteps;  // of 16 keys in a stage
  const LayerPages pages = inputs.pages;
  const int32_t* table = inputs.step.pages + work.first_page;
  const int row = lane / 2, half = lane % 2;
  const int chunk = (column_tile * 2 + half) % 8;
  const int lane_from = row * kColumnBlock + ((chunk ^ (row & 7)) * 8);
  const uint32_t lane_to =
      static_cast<uint32_t>(row * kSliceBytes + ((half ^ (row >> 2 & 1)) << 4));
  // Lane i finds where group i of a stage lies.
  const auto first_key = [&](int stage, int group) {
    const int segment = stage * kChunkSegments + group / kSegmentSteps;
    return segments.first_key(segment) + group % kSegmentSteps * 16;
  };
  const auto page_of = [&](int stage) {
    const int key = first_key(stage, lane % kGroups);
    return table[min(max(key, 0), work.position) / pages.page_size];
  };
  Turn<kValueStages> turn;
  int page = page_of(0);
  const int chunks = segments.chunks();
  for (int stage = 0; stage < chunks; stage++) {
    const int next_page = stage + 1 < chunks ? page_of(stage + 1) : 0;
    const int slot = max(first_key(stage, lane % kGroups), 0) % pages.page_size;
    const uint16_t* group_from =
        pages.values(page, work.kv_head, column_tile * 16 / kColumnBlock) + slot * kColumnBlock;
    if (stage >= kValueStages)
      barrier_wait(shared_address(&shared.values_empty[turn.stage]), turn.parity ^ 1u);
    const uint32_t to = shared_address(shared.values[turn.stage]) + lane_to;
#pragma unroll
    for (int group = 0; group < kGroups; group++) {
      const auto from = reinterpret_cast<const uint16_t*>(
          __shfl_sync(0xffffffffu, reinterpret_cast<uint64_t>(group_from), group));
      const int key = first_key(stage, group) + row;
      copy_16_bytes(to + static_cast<uint32_t>(group * 16 * kSliceBytes), from + lane_from,
                    key >= 0 && key <= work.position);
    }
    arrive_after_copies(shared_address(&shared.values_full[turn.stage]));
    turn.advance();
    page = next_page;
  }
}

// One of four warps: segment `mine` of every chunk. The maxima of a chunk's blocks come with it, so
// that every warp knows the running maximum before and after each of them.
template <int kHeadWidth, int kHeadTiles>
struct ProbabilityMaker {
  using Order = Segments<kHeadWidth>;
  static constexpr int kChunkBlocks = kChunkSegments / Order::kInBlock;
  struct Loaded {
    float2 scores[kHeadTiles][kSegmentPairs];
    float maxima[kHeadTiles][kChunkBlocks];
  };

  ColumnShared<kHeadTiles>& shared;
  Scratch scratch;
  Order segments;
  int first_row, heads, mine, lane;
  float c;
  float max[kHeadTiles];
  Turn<kProbabilityStages> turn;

  __device__ void load(Loaded& to, int chunk) const {
    const int segment = chunk * kChunkSegments + mine;
    if (chunk >= segments.chunks()) return;
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) {
      const int row = first_row + min(tile * kHeadTile + lane / 4, heads - 1);
#pragma unroll
      for (int i = 0; i < kChunkBlocks; i++) {
        const int block = segments.block(chunk * kChunkSegments) - i;
        to.maxima[tile][i] = block >= 0 ? scratch.maxima_of(row)[block] : kMinusInfinity;
      }
      if (segment >= segments.count()) continue;
      const float* from =
          scratch.scores_of<kHeadWidth>(row) + segments.first_key(segment) + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kSegmentPairs; j++)
        to.scores[tile][j] = *reinterpret_cast<const float2*>(from + 8 * j);
    }
  }

  __device__ void make(const Loaded& from, int chunk) {
    if (chunk >= kProbabilityStages)
      barrier_wait(shared_address(&shared.probabilities_empty[turn.stage]), turn.parity ^ 1u);
    ProbabilityStage<kHeadTiles>& stage = shared.probabilities[turn.stage];
    const bool opens = mine % Order::kInBlock == 0;
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) {
      float before = max[tile], after = max[tile];
#pragma unroll
      for (int i = 0; i < kChunkBlocks; i++) {
        if (i <= mine / Order::kInBlock) {
          before = after;
          after = fmaxf(after, from.maxima[tile][i]);
        }
        max[tile] = fmaxf(max[tile], from.maxima[tile][i]);
      }
      if (opens && lane % 4 == 0) {
        const bool first = chunk == 0 && mine == 0;
        stage.factors[mine][tile * kHeadTile + lane / 4] =
            first ? 1.0f : contract::rescale_factor(before, after, c);
      }
      const float scaled = after * c;
#pragma unroll
      for (int j = 0; j < kSegmentPairs; j += 2) {
        const float2 s0 = from.scores[tile][j], s1 = from.scores[tile][j + 1];
        const float4 p = make_float4(
            contract::probability(s0.x, c, scaled), contract::probability(s0.y, c, scaled),
            contract::probability(s1.x, c, scaled), contract::probability(s1.y, c, scaled));
        stage.terms[mine][tile][j / 2][lane] = p;
        stage.fragments[mine][tile][j / 2][lane] =
            make_uint2(pack_bf16(p.x, p.y), pack_bf16(p.z, p.w));
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&shared.probabilities_full[turn.stage]));
    turn.advance();
  }

  // Scores are loaded two chunks ahead.
  __device__ void run() {
    for (int tile = 0; tile < kHeadTiles; tile++) max[tile] = kMinusInfinity;
    Loaded even, odd;
    load(even, 0);
    load(odd, 1);
    for (int chunk = 0; chunk < segments.chunks(); chunk += 2) {
      make(even, chunk);
      load(even, chunk + 2);
      if (chunk + 1 >= segments.chunks()) break;
      make(odd, chunk + 1);
      load(odd, chunk + 3);
    }
  }
};

// The lanes' sums of rule N5, in a warp of their own: an addition waits for the one before.
template <int kHeadWidth, int kHeadTiles>
__device__ void add_terms(ColumnShared<kHeadTiles>& shared, Segments<kHeadWidth> segments,
                          int lane) {
  float sums[kHeadTiles] = {};
  Turn<kProbabilityStages> turn;
  for (int chunk = 0; chunk < segments.chunks(); chunk++) {
    barrier_wait(shared_address(&shared.probabilities_full[turn.stage]), turn.parity);
    const ProbabilityStage<kHeadTiles>& stage = shared.probabilities[turn.stage];
#pragma unroll
    for (int i = 0; i < kChunkSegments; i++) {
      if (chunk * kChunkSegments + i >= segments.count()) break;
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
        float4 terms[kSegmentPairs / 2];
#pragma unroll
        for (int j = 0; j < kSegmentPairs / 2; j++) terms[j] = stage.terms[i][tile][j][lane];
        float sum = sums[tile];
        const bool opens = i % Segments<kHeadWidth>::kInBlock == 0;
#pragma unroll
        for (int j = 0; j < kSegmentPairs / 2; j++) {
          if (j == 0 && opens)
            sum = contract::fma_rn(sum, stage.factors[i][tile * kHeadTile + lane / 4], terms[j].x);
          else
            sum = sum + terms[j].x;
          sum = sum + terms[j].y;
          sum = sum + terms[j].z;
          sum = sum + terms[j].w;
        }
        sums[tile] = sum;
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&shared.probabilities_empty[turn.stage]));
    turn.advance();
  }
#pragma unroll
  for (int tile = 0; tile < kHeadTiles; tile++) {
    const float inverse = 1.0f / quad_sum(sums[tile]);
    if (lane % 4 == 0) shared.inverse[tile * kHeadTile + lane / 4] = inverse;
  }
}

// The chain of 16 columns: the fragments of a segment are loaded beside the products of the one
// before.
template <int kHeadWidth, int kHeadTiles>
struct ColumnChain {
  struct Fragments {
    uint32_t values[kSegmentSteps][4];
    uint2 probabilities[kHeadTiles][kSegmentSteps];
    float2 factors[kHeadTiles];
  };

  ColumnShared<kHeadTiles>& shared;
  Segments<kHeadWidth> segments;
  int lane;
  float output[kHeadTiles][4] = {};
  Turn<kValueStages> value_turn;
  Turn<kProbabilityStages> probability_turn;

  __device__ void wait() const {
    barrier_wait(shared_address(&shared.probabilities_full[probability_turn.stage]),
                 probability_turn.parity);
    barrier_wait(shared_address(&shared.values_full[value_turn.stage]), value_turn.parity);
  }
  __device__ void give_back() {
    __syncwarp();
    if (lane == 0) {
      barrier_arrive(shared_address(&shared.probabilities_empty[probability_turn.stage]));
      barrier_arrive(shared_address(&shared.values_empty[value_turn.stage]));
    }
    value_turn.advance();
    probability_turn.advance();
  }

  __device__ void load(Fragments& to, int i) const {
    const ProbabilityStage<kHeadTiles>& stage = shared.probabilities[probability_turn.stage];
    const uint32_t row = static_cast<uint32_t>(lane / 16 * 8 + lane % 8);
    const uint32_t from = shared_address(shared.values[value_turn.stage]) + row * kSliceBytes +
                          ((static_cast<uint32_t>(lane / 8 % 2) ^ (row >> 2 & 1u)) << 4) +
                          static_cast<uint32_t>(i * kSegmentKeys * kSliceBytes);
#pragma unroll
    for (int step = 0; step < kSegmentSteps; step++) {
      load_matrices_transposed(to.values[step],
                               from + static_cast<uint32_t>(step * 16 * kSliceBytes));
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++)
        to.probabilities[tile][step] = stage.fragments[i][tile][step][lane];
    }
    if (i % Segments<kHeadWidth>::kInBlock == 0) {
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++)
        to.factors[tile] =
            *reinterpret_cast<const float2*>(&stage.factors[i][tile * kHeadTile + lane % 4 * 2]);
    }
  }

  __device__ void multiply(const Fragments& from, int i) {
    if (i % Segments<kHeadWidth>::kInBlock == 0) {
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
        const float2 f = from.factors[tile];
        output[tile][0] *= f.x, output[tile][1] *= f.y;
        output[tile][2] *= f.x, output[tile][3] *= f.y;
      }
    }
#pragma unroll
    for (int step = 0; step < kSegmentSteps; step++) {
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
        tensor_core_step(output[tile], from.values[step], from.probabilities[tile][step].x,
                         from.probabilities[tile][step].y);
      }
    }
  }

  __device__ void run() {
    const int count = segments.count();
    Fragments fragments[2];
    wait();
    load(fragments[0], 0);
    for (int first = 0; first < count; first += kChunkSegments) {
#pragma unroll
      for (int i = 0; i < kChunkSegments; i++) {
        const int segment = first + i;
        if (segment >= count) break;
        if (segment + 1 < count) {
          if (i + 1 == kChunkSegments) {
            give_back();
            wait();
          }
          load(fragments[(i + 1) % 2], (i + 1) % kChunkSegments);
        }
        multiply(fragments[i % 2], i);
      }
    }
  }
};

template <int kHeadWidth, int kHeadTiles>
__global__ void __launch_bounds__(kColumnThreads, 1)
    spread_columns(const __grid_constant__ AttentionInputs inputs, const DecodeShape shape,
                   const Scratch scratch) {
  extern __shared__ __align__(128) uint8_t shared_bytes[];
  auto& shared = *reinterpret_cast<ColumnShared<kHeadTiles>*>(shared_bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kValueStages; i++) {
      barrier_init(shared_address(&shared.values_full[i]), 32);
      barrier_init(shared_address(&shared.values_empty[i]), 1);
    }
    for (int i = 0; i < kProbabilityStages; i++) {
      barrier_init(shared_address(&shared.probabilities_full[i]), kChunkSegments);
      barrier_init(shared_address(&shared.probabilities_empty[i]), 2);
    }
  }
  __syncthreads();
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  const auto column_tile = static_cast<int>(blockIdx.x);
  const auto sequence = static_cast<int>(blockIdx.z);
  const DecodeWork work =
      decode_work<kHeadTiles>(inputs, shape, sequence, static_cast<int>(blockIdx.y));
  if (work.nobody) return;
  const Segments<kHeadWidth> segments{work.position / HeadShape<kHeadWidth>::kKeys};
  ColumnChain<kHeadWidth, kHeadTiles> chain{shared, segments, lane};
  if (warp == kChainWarp) {
    chain.run();
  } else if (warp == kSumWarp) {
    add_terms<kHeadWidth, kHeadTiles>(shared, segments, lane);
  } else if (warp == kCopyWarp) {
    copy_values<kHeadWidth, kHeadTiles>(shared, inputs, work, segments, column_tile, lane);
  } else {
    ProbabilityMaker<kHeadWidth, kHeadTiles> maker{
        shared,     scratch,
        segments,   sequence * inputs.query_heads + work.first_head,
        work.heads, warp - kProbabilityWarp,
        lane,       shape.c};
    maker.run();
  }
  __syncthreads();
  if (warp != kChainWarp) return;
  uint16_t* out = inputs.out + work.row * inputs.out_stride +
                  static_cast<int64_t>(work.first_head) * kHeadWidth;
#pragma unroll
  for (int tile = 0; tile < kHeadTiles; tile++) {
    const float2 inverse =
        *reinterpret_cast<const float2*>(&shared.inverse[tile * kHeadTile + lane % 4 * 2]);
    store_output(out + static_cast<int64_t>(tile) * kHeadTile * kHeadWidth, kHeadWidth,
                 work.heads - tile * kHeadTile, column_tile * 16, chain.output[tile], inverse,
                 lane);
  }
}

// ---- host

int sequences_per_pass(int32_t query_heads) {
  return std::max(1, kRowsPerPass / query_heads);
}

size_t round_up(size_t value, size_t step) {
  return (value + step - 1) / step * step;
}

// Sequences in passes, as many at a time as the scratch has room for.
template <int kHeadWidth, int kHeadTiles>
Status launch_spread(const AttentionInputs& inputs, void* memory, cudaStream_t stream) {
  using Head = HeadShape<kHeadWidth>;
  const int group = inputs.query_heads / inputs.pages.kv_heads;
  const int heads = std::min(group, kHeadTiles * kHeadTile);
  DecodeShape shape{group, (group + heads - 1) / heads, 0, contract::score_scale(kHeadWidth)};
  const int pass = std::min(sequences_per_pass(inputs.query_heads), inputs.step.decode_sequences);
  const int blocks = (inputs.step.max_decode_context + Head::kKeys - 1) / Head::kKeys;
  auto* scores = static_cast<float*>(memory);
  const Scratch scratch{scores, scores + int64_t{pass} * inputs.query_heads * blocks * Head::kKeys,
                        blocks};
  const auto kv_head_parts = static_cast<unsigned>(inputs.pages.kv_heads * shape.parts);
  for (int first = 0; first < inputs.step.decode_sequences; first += pass) {
    shape.first_sequence = first;
    const auto count = static_cast<unsigned>(std::min(pass, inputs.step.decode_sequences - first));
    EXACT_RETURN_IF_ERROR(launch_overlapping(
        "decode_attention, scores", spread_scores<kHeadWidth, kHeadTiles>,
        dim3(static_cast<unsigned>((blocks + kScoringWarps - 1) / kScoringWarps), kv_head_parts,
             count),
        kScoringWarps * 32, kScoringWarps * (kPieceBytes + 8), stream, inputs, shape, scratch));
    EXACT_RETURN_IF_ERROR(launch_overlapping(
        "decode_attention, columns", spread_columns<kHeadWidth, kHeadTiles>,
        dim3(static_cast<unsigned>(Head::kTiles), kv_head_parts, count), kColumnThreads,
        static_cast<int>(sizeof(ColumnShared<kHeadTiles>)), stream, inputs, shape, scratch));
  }
  return {};
}

template <int kHeadWidth>
Status launch_spread(const AttentionInputs& inputs, void* memory, cudaStream_t stream) {
  if (inputs.query_heads / inputs.pages.kv_heads <= kHeadTile)
    return launch_spread<kHeadWidth, 1>(inputs, memory, stream);
  return launch_spread<kHeadWidth, 2>(inputs, memory, stream);
}

}  // namespace

size_t decode_attention_scratch(int32_t sequences, int32_t query_heads, int32_t max_context) {
  const auto rows = static_cast<size_t>(std::min(sequences, sequences_per_pass(query_heads))) *
                    static_cast<size_t>(query_heads);
  const size_t keys = round_up(static_cast<size_t>(max_context), kMaxKeysPadding);
  return rows * (keys + keys / kMinKeyBlock) * sizeof(float);
}

Status launch_spread_attention(const AttentionInputs& inputs, void* scratch, size_t scratch_bytes,
                               cudaStream_t stream) {
  const size_t needed = decode_attention_scratch(inputs.step.decode_sequences, inputs.query_heads,
                                                 inputs.step.max_decode_context);
  if (scratch == nullptr || scratch_bytes < needed) {
    return Status(Code::invalid, "decode_attention: the spread form needs " +
                                     std::to_string(needed) + " bytes of scratch, not " +
                                     std::to_string(scratch_bytes));
  }
  switch (inputs.pages.head_width) {
    case 32:
      return launch_spread<32>(inputs, scratch, stream);
    case 64:
      return launch_spread<64>(inputs, scratch, stream);
    case 80:
      return launch_spread<80>(inputs, scratch, stream);
    case 96:
      return launch_spread<96>(inputs, scratch, stream);
    default:
      return launch_spread<128>(inputs, scratch, stream);
  }
}

}  // namespace exact::cuda
