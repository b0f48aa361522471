// decode_attention, streamed: one query row a sequence against its cached prefix           rule N5
// shapes  query, out (rows, H * E) bf16 with strides; keys and values in pages; E of the template
// order   key blocks from the query's own down to 0. Scores are one chain over E each; a head's
//         softmax is in each warp, in the lanes of the rule; O goes on with its chain over the
//         block's keys, ascending
// rounds  p to bf16 for the second product, out at the end
// launch  a block a (sequence, kv head): four warps that compute and one that copies. It streams
//         K and V of each key block, in the order of use, through a ring of 16 KB pieces. Each
//         computing warp scores a quarter of a block's keys; scores meet in shared memory; then
//         each has all probabilities and a quarter of O's columns. The scores of the next block
//         are computed beside the softmax of this one.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "kernels/contract/shape.h"
#include "kernels/cuda/decode_attention.cuh"

namespace exact::cuda {
namespace {

constexpr int kWarps = 4;  // that compute
constexpr int kThreads = (kWarps + 1) * 32;
constexpr int kMaxStages = 12;
constexpr int kMinStages = 3;
constexpr int kMaxBlocksPerMultiprocessor = 4;
constexpr int kBarrierBytes = 2 * 8 * kMaxStages;  // after the ring
constexpr float kMinusInfinity = -__builtin_inff();

// Where the pieces lie and whose turn they are.
struct PieceRing {
  uint32_t data, full, empty;  // shared addresses
  int stages;
  int stage = 0;
  uint32_t parity = 0;

  __device__ uint32_t full_barrier() const { return full + 8u * static_cast<uint32_t>(stage); }
  __device__ uint32_t empty_barrier() const { return empty + 8u * static_cast<uint32_t>(stage); }
  __device__ uint32_t piece() const { return data + static_cast<uint32_t>(stage * kPieceBytes); }
  __device__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1u;
    }
  }
};

// The warp that copies. A lane has one run of slots of one column block: what a page has of a
// block. Order: K of the own block; then K of the block below and V of this one, again and again.
template <int kHeadWidth>
__device__ void copy_pieces(PieceRing ring, const AttentionInputs& inputs, const DecodeWork& work,
                            int lane) {
  using Head = HeadShape<kHeadWidth>;
  const LayerPages pages = inputs.pages;
  const int run_slots = min(pages.page_size, Head::kKeys);
  const int runs = Head::kKeys / run_slots;
  const int run = lane % runs, column_block = lane / runs;
  const bool mine = column_block < Head::kColumnBlocks;
  const int last = work.position / Head::kKeys;
  // Only whole k16 steps are read, and only those that the query sees.
  const int seen = (work.position % Head::kKeys / 16 + 1) * 16;
  const int32_t* table = inputs.step.pages + work.first_page;
  const auto page_of = [&](int block) {
    const int slot = run * run_slots;
    if (!mine || block < 0 || (block == last && slot >= seen)) return 0;
    return table[(block * Head::kKeys + slot) / pages.page_size];
  };
  const uint64_t policy = evict_first_policy();
  bool wrapped = false;
  const auto copy = [&](int block, int page, bool values) {
    if (wrapped) barrier_wait(ring.empty_barrier(), ring.parity ^ 1u);
    const int slots = block == last ? seen : Head::kKeys;
    if (lane == 0) {
      barrier_expect(ring.full_barrier(),
                     static_cast<uint32_t>(slots * kRowBytes * Head::kColumnBlocks));
    }
    __syncwarp();
    const int count = min(run_slots, slots - run * run_slots);
    if (mine && count > 0) {
      const int slot = (block * Head::kKeys + run * run_slots) % pages.page_size;
      const uint16_t* from = (values ? pages.values(page, work.kv_head, column_block)
                                     : pages.keys(page, work.kv_head, column_block)) +
                             slot * kColumnBlock;
      copy_run(ring.piece() + static_cast<uint32_t>(column_block * Head::kColumnBlockBytes +
                                                    run * run_slots * kRowBytes),
               from, static_cast<uint32_t>(count * kRowBytes), ring.full_barrier(), policy);
    }
    ring.advance();
    if (ring.stage == 0) wrapped = true;
  };
  int page = page_of(last), next_page = page_of(last - 1);
  copy(last, page, false);
  for (int block = last; block >= 0; block--) {
    const int page_after = page_of(block - 2);
    if (block > 0) copy(block - 1, next_page, false);
    copy(block, page, true);
    page = next_page;
    next_page = page_after;
  }
}

// A computing warp: its share of the scores, all of the softmax, its columns of O.
template <int kHeadWidth, int kHeadTiles>
struct Computer {
  using Head = HeadShape<kHeadWidth>;
  static constexpr int kKeyTiles = Head::kKeys / 16 / kWarps;  // of a warp
  static constexpr int kColumnTiles = (Head::kTiles + kWarps - 1) / kWarps;
  static constexpr int kStride = Head::kKeys + 8;  // of a head's scores: no bank conflicts
  static constexpr int kPairs = Head::kKeys / 8;   // of columns in a lane

  PieceRing ring;
  float* shared_scores;  // [2][heads][kStride]
  int heads, warp, lane;
  float c;
  uint32_t query[Head::kTiles][kHeadTiles][2];
  float max[kHeadTiles], sum[kHeadTiles];
  float output[kColumnTiles][kHeadTiles][4] = {};

  __device__ void take() { barrier_wait(ring.full_barrier(), ring.parity); }
  __device__ void give_back() {
    __syncwarp();
    if (lane == 0) barrier_arrive(ring.empty_barrier());
    ring.advance();
  }
  __device__ float* scores_of(int buffer, int head) const {
    return shared_scores + (buffer * heads + head) * kStride;
  }

  __device__ void score(float (&scores)[kKeyTiles][kHeadTiles][4]) {
    take();
    const uint32_t piece = ring.piece();
#pragma unroll
    for (int step = 0; step < Head::kTiles; step++) {
#pragma unroll
      for (int i = 0; i < kKeyTiles; i++) {
        uint32_t keys[4];
        load_keys<kHeadWidth>(keys, piece, warp * kKeyTiles + i, step, lane);
#pragma unroll
        for (int tile = 0; tile < kHeadTiles; tile++)
          tensor_core_step(scores[i][tile], keys, query[step][tile][0], query[step][tile][1]);
      }
    }
    give_back();
  }

  __device__ void share(const float (&scores)[kKeyTiles][kHeadTiles][4], int buffer) {
#pragma unroll
    for (int i = 0; i < kKeyTiles; i++) {
#pragma unroll
      for (int tile = 0; tile < kHeadTiles; tile++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int head = tile * kHeadTile + lane % 4 * 2 + j % 2;
          const int key = (warp * kKeyTiles + i) * 16 + lane / 4 + j / 2 * 8;
          if (head < heads) scores_of(buffer, head)[key] = scores[i][tile][j];
        }
      }
    }
  }

  // `seen`: keys of this block, all but in the first. Probabilities are P^T's fragments.
  template <bool kFirst>
  __device__ float softmax(uint32_t (&probabilities)[kPairs], int tile, int buffer, int seen) {
    const int head = min(tile * kHeadTile + lane / 4, heads - 1);
    const float* from = scores_of(buffer, head) + lane % 4 * 2;
    float2 s[kPairs];
    float top = max[tile];
#pragma unroll
    for (int j = 0; j < kPairs; j++) {
      s[j] = *reinterpret_cast<const float2*>(from + 8 * j);
      if (kFirst) {
        const int column = 8 * j + lane % 4 * 2;
        if (column >= seen) s[j].x = kMinusInfinity;
        if (column + 1 >= seen) s[j].y = kMinusInfinity;
      }
      top = fmaxf(top, fmaxf(s[j].x, s[j].y));
    }
    top = quad_max(top);
    const float factor = kFirst ? 1.0f : contract::rescale_factor(max[tile], top, c);
    const float scaled = top * c;
    float lane_sum = sum[tile];
#pragma unroll
    for (int j = 0; j < kPairs; j++) {
      const float p0 = contract::probability(s[j].x, c, scaled);
      const float p1 = contract::probability(s[j].y, c, scaled);
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

  template <bool kFirst>
  __device__ void add_values(const uint32_t (&probabilities)[kHeadTiles][kPairs], int seen) {
    take();
    const uint32_t piece = ring.piece();
#pragma unroll
    for (int step = 0; step < Head::kKeys / 16; step++) {
      if (kFirst && step * 16 >= seen) break;
#pragma unroll
      for (int i = 0; i < kColumnTiles; i++) {
        const int column_tile = warp + i * kWarps;
        if (Head::kTiles % kWarps != 0 && column_tile >= Head::kTiles) break;
        uint32_t values[4];
        load_values<kHeadWidth>(values, piece, column_tile, step, lane);
        if (kFirst) drop_values(values, seen - step * 16, lane);
#pragma unroll
        for (int tile = 0; tile < kHeadTiles; tile++) {
          tensor_core_step(output[i][tile], values, probabilities[tile][2 * step],
                           probabilities[tile][2 * step + 1]);
        }
      }
    }
    give_back();
  }

  // The softmax and values of a block whose scores are shared; the scores of the block below.
  template <bool kFirst>
  __device__ void block(int buffer, int seen, bool more) {
    float scores[kKeyTiles][kHeadTiles][4] = {};
    if (more) score(scores);
    uint32_t probabilities[kHeadTiles][kPairs];
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) {
      const float factor = softmax<kFirst>(probabilities[tile], tile, buffer, seen);
      if (!kFirst) {
        const float2 f = of_heads(factor, lane);
#pragma unroll
        for (int i = 0; i < kColumnTiles; i++) {
          output[i][tile][0] *= f.x, output[i][tile][1] *= f.y;
          output[i][tile][2] *= f.x, output[i][tile][3] *= f.y;
        }
      }
    }
    if (more) share(scores, buffer ^ 1);
    add_values<kFirst>(probabilities, seen);
    meet();
  }

  // The computing warps alone.
  __device__ static void meet() {
    asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory");
  }

  __device__ void run(int position) {
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) max[tile] = kMinusInfinity, sum[tile] = 0.0f;
    const int last = position / Head::kKeys;
    {
      float scores[kKeyTiles][kHeadTiles][4] = {};
      score(scores);
      share(scores, 0);
    }
    meet();
    block<true>(0, position % Head::kKeys + 1, last > 0);
    int buffer = 1;
    for (int i = last - 1; i >= 0; i--) {
      block<false>(buffer, Head::kKeys, i > 0);
      buffer ^= 1;
    }
  }

  __device__ void finish(uint16_t* out) const {
#pragma unroll
    for (int tile = 0; tile < kHeadTiles; tile++) {
      const float2 inverse = of_heads(1.0f / quad_sum(sum[tile]), lane);
#pragma unroll
      for (int i = 0; i < kColumnTiles; i++) {
        const int column_tile = warp + i * kWarps;
        if (column_tile >= Head::kTiles) break;
        store_output(out + static_cast<int64_t>(tile) * kHeadTile * kHeadWidth, kHeadWidth,
                     heads - tile * kHeadTile, column_tile * 16, output[i][tile], inverse, lane);
      }
    }
  }
};

template <int kHeadWidth, int kHeadTiles>
__global__ void __launch_bounds__(kThreads, kHeadTiles == 1 ? kMaxBlocksPerMultiprocessor : 3)
    streamed_attention(const __grid_constant__ AttentionInputs inputs, const DecodeShape shape,
                       int stages) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t data = shared_address(shared);
  const uint32_t barriers = data + static_cast<uint32_t>(stages * kPieceBytes);
  PieceRing ring{data, barriers, barriers + 8 * kMaxStages, stages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; i++) {
      barrier_init(ring.full + 8u * static_cast<uint32_t>(i), 1);
      barrier_init(ring.empty + 8u * static_cast<uint32_t>(i), kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  const DecodeWork work = decode_work<kHeadTiles>(inputs, shape, static_cast<int>(blockIdx.y),
                                                  static_cast<int>(blockIdx.x));
  if (work.nobody) return;
  if (warp == kWarps) {
    copy_pieces<kHeadWidth>(ring, inputs, work, lane);
    return;
  }
  Computer<kHeadWidth, kHeadTiles> computer{
      ring,       reinterpret_cast<float*>(shared + stages * kPieceBytes + kBarrierBytes),
      work.heads, warp,
      lane,       shape.c};
  load_query<kHeadWidth, kHeadTiles>(computer.query, inputs, work, lane);
  computer.run(work.position);
  computer.finish(inputs.out + work.row * inputs.out_stride +
                  static_cast<int64_t>(work.first_head) * kHeadWidth);
}

// As deep a ring as lets all blocks that a multiprocessor may have be there at once.
template <int kHeadWidth, int kHeadTiles>
Status launch_streamed(const AttentionInputs& inputs, int multiprocessors, cudaStream_t stream) {
  const int group = inputs.query_heads / inputs.pages.kv_heads;
  const int heads = std::min(group, kHeadTiles * kHeadTile);
  const int parts = (group + heads - 1) / heads;
  const DecodeShape shape{group, parts, 0, contract::score_scale(kHeadWidth)};
  const int score_bytes = 2 * heads * Computer<kHeadWidth, kHeadTiles>::kStride * 4;
  const int64_t units = int64_t{inputs.step.decode_sequences} * inputs.pages.kv_heads * parts;
  const auto resident = static_cast<int>(std::clamp<int64_t>(
      (units + multiprocessors - 1) / multiprocessors, 1, kMaxBlocksPerMultiprocessor));
  constexpr int kSharedBytes = 228 * 1024, kReservedBytes = 1024, kMostBytes = 227 * 1024;
  const int room = std::min(kMostBytes, kSharedBytes / resident - kReservedBytes);
  const int stages =
      std::clamp((room - score_bytes - kBarrierBytes) / kPieceBytes, kMinStages, kMaxStages);
  return launch_overlapping("decode_attention", streamed_attention<kHeadWidth, kHeadTiles>,
                            dim3(static_cast<unsigned>(inputs.pages.kv_heads * parts),
                                 static_cast<unsigned>(inputs.step.decode_sequences)),
                            kThreads, stages * kPieceBytes + kBarrierBytes + score_bytes, stream,
                            inputs, shape, stages);
}

template <int kHeadWidth>
Status launch_streamed(const AttentionInputs& inputs, int multiprocessors, cudaStream_t stream) {
  if (inputs.query_heads / inputs.pages.kv_heads <= kHeadTile)
    return launch_streamed<kHeadWidth, 1>(inputs, multiprocessors, stream);
  return launch_streamed<kHeadWidth, 2>(inputs, multiprocessors, stream);
}

}  // namespace

Status launch_streamed_attention(const AttentionInputs& inputs, int multiprocessors,
                                 cudaStream_t stream) {
  switch (inputs.pages.head_width) {
    case 32:
      return launch_streamed<32>(inputs, multiprocessors, stream);
    case 64:
      return launch_streamed<64>(inputs, multiprocessors, stream);
    case 80:
      return launch_streamed<80>(inputs, multiprocessors, stream);
    case 96:
      return launch_streamed<96>(inputs, multiprocessors, stream);
    default:
      return launch_streamed<128>(inputs, multiprocessors, stream);
  }
}

namespace {

Status refuse(const char* name, int64_t value, const char* range) {
  return Status(Code::unsupported, "decode_attention: the " + std::string(name) + " is " +
                                       std::to_string(value) + "; it must be " + range);
}

Status check_shape(const AttentionInputs& inputs) {
  const LayerPages& pages = inputs.pages;
  const int width = pages.head_width;
  if (width != 32 && width != 64 && width != 80 && width != 96 && width != 128)
    return refuse("head width", width, "32, 64, 80, 96 or 128");
  EXACT_RETURN_IF_ERROR(contract::check_attention_shape(inputs.query_heads, pages.kv_heads, width));
  const int size = pages.page_size;
  if (size != 16 && size != 32 && size != 64 && size != 128)
    return refuse("page size", size, "16, 32, 64 or 128");
  if (inputs.query_stride % 8 != 0)
    return refuse("query stride", inputs.query_stride, "a multiple of 8");
  return {};
}

// The spread form when one block a kv head would leave much of the GPU idle for long.
DecodeAttentionForm choose_form(const AttentionInputs& inputs, int multiprocessors) {
  const int64_t units = int64_t{inputs.step.decode_sequences} * inputs.pages.kv_heads;
  const bool idle = 2 * units < multiprocessors;
  return idle && inputs.step.max_decode_context > 1024 ? DecodeAttentionForm::spread
                                                       : DecodeAttentionForm::streamed;
}

}  // namespace

Status launch_decode_attention(const AttentionInputs& inputs, DecodeAttentionForm form,
                               int multiprocessors, void* scratch, size_t scratch_bytes,
                               cudaStream_t stream) {
  EXACT_RETURN_IF_ERROR(check_shape(inputs));
  if (inputs.step.decode_sequences == 0) return {};
  if (form == DecodeAttentionForm::automatic) form = choose_form(inputs, multiprocessors);
  if (form == DecodeAttentionForm::streamed)
    return launch_streamed_attention(inputs, multiprocessors, stream);
  return launch_spread_attention(inputs, scratch, scratch_bytes, stream);
}

}  // namespace exact::cuda
