// decode_attention_streamed.cuh owns the warps of the streamed form and what passes between them.
//
//   one copies         K and V of each key block, own block first, to a ring of 16 KB pieces
//   two score          half of a block's keys each, as far ahead as the rings let them
//   four add values    each has all probabilities of a block, and a quarter of O's columns
#pragma once

#include "kernels/cuda/decode_attention.cuh"

namespace exact::cuda {

inline constexpr int kScoreWarps = 2;
inline constexpr int kValueWarps = 4;
inline constexpr int kStreamThreads = (kScoreWarps + kValueWarps + 1) * 32;
inline constexpr int kMaxPieces = 12;  // of keys and values together
inline constexpr int kMinPieces = 3;
inline constexpr int kScoreStages = 3;
inline constexpr float kMinusInfinity = -__builtin_inff();

// The rings of pieces in shared memory: the keys' first, then the values'.
struct PieceRings {
  int keys, values;  // stages
};

// What the block shares besides the pieces; the scores of kScoreStages blocks follow it.
struct StreamShared {
  RingBarriers<kMaxPieces> keys, values;
  RingBarriers<kScoreStages> scores;
  float maxima[kScoreStages][kScoreWarps][2 * kHeadTile];

  __device__ void init(const PieceRings& rings) {
    // Every lane answers for what it wrote and read itself.
    keys.init(rings.keys, 1, kScoreWarps * 32);
    values.init(rings.values, 1, kValueWarps * 32);
    scores.init(kScoreStages, kScoreWarps * 32, kValueWarps * 32);
    barrier_init_fence();
  }
};

// A head's scores of one block lie together; the padding keeps quads in different banks.
template <int kHeadWidth>
inline constexpr int kScoreStride = HeadShape<kHeadWidth>::kKeys + 8;

template <int kHeadWidth>
__device__ void copy_pieces(uint32_t key_pieces, uint32_t value_pieces, RingTurn keys,
                            RingTurn values, const AttentionInputs& inputs, const DecodeWork& work,
                            int lane) {
  PieceCopier<kHeadWidth> copier(inputs, work, lane);
  const uint64_t policy = evict_first_policy();
  for (int block = work.position / HeadShape<kHeadWidth>::kKeys; block >= 0; block--) {
    copier.turn_to(block);
    keys.wait_empty();
    copier.copy_keys(key_pieces + static_cast<uint32_t>(keys.stage * kPieceBytes),
                     keys.full_barrier(), policy);
    keys.advance();
    values.wait_empty();
    copier.copy_values(value_pieces + static_cast<uint32_t>(values.stage * kPieceBytes),
                       values.full_barrier(), policy);
    values.advance();
  }
}

// Scores of this warp's half of each block's keys, and the largest of them for each head.
template <int kHeadWidth, int kHeadTiles>
struct ScoreWarp {
  using Head = HeadShape<kHeadWidth>;
  static constexpr int kKeyTiles = Head::kKeys / 16 / kScoreWarps;

  StreamShared& shared;
  float* scores;  // [kScoreStages][heads][kScoreStride]
  uint32_t pieces;
  RingTurn piece_turn;
  int heads, warp, lane;
  uint32_t query[Head::kTiles][kHeadTiles][2];

  // Fragments are loaded kAhead steps before their products.
  __device__ void multiply(float (&sums)[kKeyTiles][kHeadTiles][4]) {
    constexpr int kAhead = kKeyTiles <= 2 ? 2 : 1;
    const uint32_t piece = pieces + static_cast<uint32_t>(piece_turn.stage * kPieceBytes);
    uint32_t keys[kAhead + 1][kKeyTiles][4];
    const auto load = [&](int step) {
#pragma unroll
      for (int i = 0; i < kKeyTiles; i++)
        load_keys<kHeadWidth>(keys[step % (kAhead + 1)][i], piece, warp * kKeyTiles + i, step,
                              lane);
    };
    piece_turn.wait_full();
#pragma unroll
    for (int step = 0; step < kAhead; step++) load(step);
#pragma unroll
    for (int step = 0; step < Head::kTiles; step++) {
      if (step + kAhead < Head::kTiles) load(step + kAhead);
#pragma unroll
      for (int i = 0; i < kKeyTiles; i++) {
#pragma unroll
        for (int tile = 0; tile < kHeadTiles; tile++) {
          ordered_step(sums[i][tile], keys[step % (kAhead + 1)][i], query[step][tile][0],
                       query[step][tile][1]);
        }
      }
    }
    barrier_arrive(piece_turn.empty_barrier());
    piece_turn.advance();
  }

  __device__ int key_of(int i, int j) const {
    return (warp * kKeyTiles + i) * 16 + lane / 4 + j / 2 * 8;
  }

  __device__ void store(const float (&sums)[kKeyTiles][kHeadTiles][4], int stage) {
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) {
#pragma unroll
      for (int odd = 0; odd < 2; odd++) {
        const int head = tile * kHeadTile + lane % 4 * 2 + odd;
        float top = kMinusInfinity;
#pragma unroll
        for (int i = 0; i < kKeyTiles; i++) {
#pragma unroll
          for (int j = odd; j < 4; j += 2) {
            top = fmaxf(top, sums[i][tile][j]);
            if (head < heads)
              scores[(stage * heads + head) * kScoreStride<kHeadWidth> + key_of(i, j)] =
                  sums[i][tile][j];
          }
        }
#pragma unroll
        for (int other = 4; other < 32; other *= 2)
          top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, other));
        if (lane < 4) shared.maxima[stage][warp][head] = top;
      }
    }
  }

  __device__ void run(int position) {
    RingTurn turn = shared.scores.turn();
    const int last = position / Head::kKeys;
    for (int block = last; block >= 0; block--) {
      float sums[kKeyTiles][kHeadTiles][4] = {};
      multiply(sums);
      if (block == last) {
#pragma unroll
        for (int i = 0; i < kKeyTiles; i++) {
#pragma unroll
          for (int tile = 0; tile < kHeadTiles; tile++) {
#pragma unroll
            for (int j = 0; j < 4; j++)
              if (block * Head::kKeys + key_of(i, j) > position) sums[i][tile][j] = kMinusInfinity;
          }
        }
      }
      turn.wait_empty();
      store(sums, turn.stage);
      barrier_arrive(turn.full_barrier());
      turn.advance();
    }
  }
};

// The softmax, and this warp's columns of O.
template <int kHeadWidth, int kHeadTiles>
struct ValueWarp {
  using Head = HeadShape<kHeadWidth>;
  static constexpr int kColumnTiles = (Head::kTiles + kValueWarps - 1) / kValueWarps;
  static constexpr int kPairs = Head::kKeys / 8;  // of columns in a lane

  StreamShared& shared;
  const float* scores;
  uint32_t pieces;
  RingTurn piece_turn, score_turn;
  int heads, warp, lane;
  float c;
  float max[kHeadTiles], sum[kHeadTiles];
  float output[kColumnTiles][kHeadTiles][4] = {};

  // One tile's probabilities, as P^T's fragments; returns f.
  template <bool kFirst>
  __device__ float softmax(uint32_t (&probabilities)[kPairs], int tile) {
    const int head = min(tile * kHeadTile + lane / 4, heads - 1);
    const float* from =
        scores + (score_turn.stage * heads + head) * kScoreStride<kHeadWidth> + lane % 4 * 2;
    float top = max[tile];
#pragma unroll
    for (int i = 0; i < kScoreWarps; i++)
      top = fmaxf(top, shared.maxima[score_turn.stage][i][head]);
    const float factor = kFirst ? 1.0f : contract::rescale_factor(max[tile], top, c);
    const float scaled = top * c;
    float lane_sum = sum[tile];
#pragma unroll
    for (int j = 0; j < kPairs; j++) {
      const float2 s = *reinterpret_cast<const float2*>(from + 8 * j);
      const float p0 = contract::probability(s.x, c, scaled);
      const float p1 = contract::probability(s.y, c, scaled);
      if (j > 0)
        lane_sum = lane_sum + p0;
      else
        lane_sum = kFirst ? p0 : contract::fma_rn(lane_sum, factor, p0);
      lane_sum = lane_sum + p1;
      probabilities[j] = pack_bf16(p0, p1);
    }
    max[tile] = top;
    sum[tile] = lane_sum;
    return factor;
  }

  // `seen`: keys of this block, all but in the first.
  template <bool kFirst>
  __device__ void add_values(const uint32_t (&probabilities)[kHeadTiles][kPairs],
                             const float (&factors)[kHeadTiles], int seen) {
    constexpr int kSteps = Head::kKeys / 16;
    constexpr int kAhead = 2;
    const uint32_t piece = pieces + static_cast<uint32_t>(piece_turn.stage * kPieceBytes);
    uint32_t values[kAhead + 1][kColumnTiles][4];
    const auto load = [&](int step) {
#pragma unroll
      for (int i = 0; i < kColumnTiles; i++) {
        const int column_tile = min(warp + i * kValueWarps, Head::kTiles - 1);
        load_values<kHeadWidth>(values[step % (kAhead + 1)][i], piece, column_tile, step, lane);
        if (kFirst) drop_values(values[step % (kAhead + 1)][i], seen - step * 16, lane);
      }
    };
    piece_turn.wait_full();
#pragma unroll
    for (int step = 0; step < kAhead; step++) load(step);
    if (!kFirst) {
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
        const float2 f = of_heads(factors[tile], lane);
#pragma unroll
        for (int i = 0; i < kColumnTiles; i++) {
          output[i][tile][0] *= f.x, output[i][tile][1] *= f.y;
          output[i][tile][2] *= f.x, output[i][tile][3] *= f.y;
        }
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      if (kFirst && step * 16 >= seen) break;
      if (step + kAhead < kSteps) load(step + kAhead);
#pragma unroll
      for (int i = 0; i < kColumnTiles; i++) {
#pragma unroll
        for (int tile = 0; tile < kHeadTiles; tile++) {
          ordered_step(output[i][tile], values[step % (kAhead + 1)][i],
                       probabilities[tile][2 * step], probabilities[tile][2 * step + 1]);
        }
      }
    }
    barrier_arrive(piece_turn.empty_barrier());
    piece_turn.advance();
  }

  template <bool kFirst>
  __device__ void block(int seen) {
    uint32_t probabilities[kHeadTiles][kPairs];
    float factors[kHeadTiles];
    score_turn.wait_full();
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++)
      factors[tile] = softmax<kFirst>(probabilities[tile], tile);
    barrier_arrive(score_turn.empty_barrier());
    score_turn.advance();
    add_values<kFirst>(probabilities, factors, seen);
  }

  __device__ void run(int position) {
    score_turn = shared.scores.turn();
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) max[tile] = kMinusInfinity, sum[tile] = 0.0f;
    block<true>(position % Head::kKeys + 1);
#pragma unroll 1
    for (int i = position / Head::kKeys; i > 0; i--) block<false>(Head::kKeys);
  }

  __device__ void finish(uint16_t* out) const {
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) {
      const float2 inverse = of_heads(1.0f / quad_sum(sum[tile]), lane);
#pragma unroll
      for (int i = 0; i < kColumnTiles; i++) {
        const int column_tile = warp + i * kValueWarps;
        if (column_tile >= Head::kTiles) break;
        store_output(out + static_cast<int64_t>(tile) * kHeadTile * kHeadWidth, kHeadWidth,
                     heads - tile * kHeadTile, column_tile * 16, output[i][tile], inverse, lane);
      }
    }
  }
};

}  // namespace exact::cuda
