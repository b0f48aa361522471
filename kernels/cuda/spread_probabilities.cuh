// spread_probabilities.cuh owns what feeds the chains of the spread form of decode attention: the
// order of the keys, the rings in shared memory, the copies of values, and the warps that turn
// scores into probabilities and add the lanes' sums of rule N5.
#pragma once

#include "kernels/cuda/spread_scores.cuh"

namespace exact::cuda {

inline constexpr int kSegmentKeys = 64;
inline constexpr int kChunkSegments = 4;            // of a stage of the rings
inline constexpr int kMakers = 2 * kChunkSegments;  // warps: each makes probabilities of a half
inline constexpr int kHalfKeys = kSegmentKeys / 2;
inline constexpr int kSegmentSteps = kSegmentKeys / 16;
inline constexpr int kSegmentPairs = kSegmentKeys / 8;
inline constexpr int kValueStages = 4;
inline constexpr int kProbabilityStages = 3;
inline constexpr int kScoreSlots = 4;   // of a warp: three are on their way while one is used
inline constexpr int kSliceBytes = 32;  // 16 columns of a key
inline constexpr int kValueStageBytes = kChunkSegments * kSegmentKeys * kSliceBytes;
enum ColumnWarp : int { kChainWarp = 0, kSumWarp = 1, kCopyWarp = 2, kProbabilityWarp = 3 };
inline constexpr int kColumnThreads = (kProbabilityWarp + kMakers) * 32;

// A stage of probabilities: as fragments of P^T for the chain, in fp32 for the sums.
template <int kHeadTiles>
struct ProbabilityStage {
  uint2 fragments[kChunkSegments][kHeadTiles][kSegmentSteps][32];
  float4 terms[kChunkSegments][kHeadTiles][kSegmentPairs / 2][32];
  float factors[kChunkSegments][kHeadTiles * kHeadTile];
};

// What one warp is about to turn into probabilities: the scores of half a segment, and the maxima
// of all key blocks of the chunk. The padding keeps the heads of a warp in different banks.
template <int kHeadTiles>
struct ScoreSlot {
  float scores[kHeadTiles * kHeadTile][kHalfKeys + 8];
  float maxima[kHeadTiles * kHeadTile][kChunkSegments];
};

// All barriers count lanes: each answers for what it wrote and read itself.
template <int kHeadTiles>
struct ColumnShared {
  uint8_t values[kValueStages][kValueStageBytes];
  ScoreSlot<kHeadTiles> scores[kMakers][kScoreSlots];
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
__device__ __forceinline__ void copy_4_bytes(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
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

// One of eight warps: half a segment of every chunk. The maxima of a chunk's blocks come with it,
// so that every warp knows the running maximum before and after each of them. Scores are fetched
// three chunks ahead into slots of the warp's own: an answer of the L2 takes longer than a chunk.
template <int kHeadWidth, int kHeadTiles>
struct ProbabilityMaker {
  using Order = Segments<kHeadWidth>;
  static constexpr int kChunkBlocks = kChunkSegments / Order::kInBlock;

  ColumnShared<kHeadTiles>& shared;
  SpreadScratch scratch;
  Order segments;
  int first_row, heads, maker, lane;
  float c;
  float max[kHeadTiles];
  Turn<kProbabilityStages> turn;

  __device__ int mine() const { return maker / 2; }  // the segment of a chunk
  __device__ ScoreSlot<kHeadTiles>& slot_of(int chunk) const {
    return shared.scores[maker][chunk % kScoreSlots];
  }

  // Commits a group of copies, maybe an empty one. Blocks before the first have nothing to say.
  __device__ void fetch(int chunk) const {
    if (chunk < segments.chunks()) {
      ScoreSlot<kHeadTiles>& slot = slot_of(chunk);
      const int first = segments.block(chunk * kChunkSegments);
      for (int i = lane; i < heads * kChunkBlocks; i += 32) {
        const int head = i / kChunkBlocks, back = i % kChunkBlocks;
        float* const to = &slot.maxima[head][back];
        if (first - back >= 0) {
          copy_4_bytes(shared_address(to), scratch.maxima_of(first_row + head) + first - back);
        } else {
          *to = kMinusInfinity;
        }
      }
      const int segment = chunk * kChunkSegments + mine();
      constexpr int kPieces = kHalfKeys / 4;  // of 16 bytes, of a head
      for (int i = lane; segment < segments.count() && i < heads * kPieces; i += 32) {
        const int head = i / kPieces, first_of_piece = i % kPieces * 4;
        copy_16_bytes(shared_address(&slot.scores[head][first_of_piece]),
                      scratch.scores_of<kHeadWidth>(first_row + head) +
                          segments.first_key(segment) + maker % 2 * kHalfKeys + first_of_piece,
                      true);
      }
    }
    commit_copies();
  }

  __device__ void make(int chunk) {
    wait_for_copies<kScoreSlots - 2>();
    __syncwarp();  // the other lanes' copies are there too
    const ScoreSlot<kHeadTiles>& slot = slot_of(chunk);
    if (chunk >= kProbabilityStages)
      barrier_wait(shared_address(&shared.probabilities_empty[turn.stage]), turn.parity ^ 1u);
    ProbabilityStage<kHeadTiles>& stage = shared.probabilities[turn.stage];
    const bool opens = maker % (2 * Order::kInBlock) == 0;
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) {
      const int head = min(tile * kHeadTile + lane / 4, heads - 1);
      float before = max[tile], after = max[tile];
#pragma unroll
      for (int i = 0; i < kChunkBlocks; i++) {
        const float of_block = slot.maxima[head][i];
        if (i <= mine() / Order::kInBlock) {
          before = after;
          after = fmaxf(after, of_block);
        }
        max[tile] = fmaxf(max[tile], of_block);
      }
      if (opens && lane % 4 == 0) {
        const bool first = chunk == 0 && maker == 0;
        stage.factors[mine()][tile * kHeadTile + lane / 4] =
            first ? 1.0f : contract::rescale_factor(before, after, c);
      }
      const float scaled = after * c;
      const float* const scores = slot.scores[head] + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kHalfKeys / 8; j += 2) {
        const float2 s0 = *reinterpret_cast<const float2*>(scores + 8 * j);
        const float2 s1 = *reinterpret_cast<const float2*>(scores + 8 * j + 8);
        const float4 p = make_float4(
            contract::probability(s0.x, c, scaled), contract::probability(s0.y, c, scaled),
            contract::probability(s1.x, c, scaled), contract::probability(s1.y, c, scaled));
        const int place = maker % 2 * (kHalfKeys / 16) + j / 2;
        stage.terms[mine()][tile][place][lane] = p;
        stage.fragments[mine()][tile][place][lane] =
            make_uint2(pack_bf16(p.x, p.y), pack_bf16(p.z, p.w));
      }
    }
    barrier_arrive(shared_address(&shared.probabilities_full[turn.stage]));
    turn.advance();
    __syncwarp();  // the slot is read, and may be filled again
  }

  __device__ void run() {
    for (int tile = 0; tile < kHeadTiles; tile++) max[tile] = kMinusInfinity;
    for (int chunk = 0; chunk < kScoreSlots - 1; chunk++) fetch(chunk);
    for (int chunk = 0; chunk < segments.chunks(); chunk++) {
      make(chunk);
      fetch(chunk + kScoreSlots - 1);
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
    barrier_arrive(shared_address(&shared.probabilities_empty[turn.stage]));
    turn.advance();
  }
#pragma unroll
  for (int tile = 0; tile < kHeadTiles; tile++) {
    const float inverse = 1.0f / quad_sum(sums[tile]);
    if (lane % 4 == 0) shared.inverse[tile * kHeadTile + lane / 4] = inverse;
  }
}

}  // namespace exact::cuda
