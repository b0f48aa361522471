// decode_attention, streamed: one query row a sequence against its cached prefix           rule N5
// shapes  query, out (rows, H * E) bf16 with strides; keys and values in pages; E of the template
// order   key blocks from the query's own down to 0. Scores are one chain over E each; a head's
//         lanes' sums are in the lanes of the rule; O goes on with its chain over the block's keys,
//         ascending
// rounds  p to bf16 for the second product, out at the end
// launch  a block a (sequence, kv head), so many pieces of K and V under way that a multiprocessor
//         never waits; the warps are in decode_attention_streamed.cuh. This file also chooses
//         between the forms.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "kernels/contract/shape.h"
#include "kernels/cuda/decode_attention_streamed.cuh"

namespace exact::cuda {
namespace {

constexpr int kMaxBlocksPerMultiprocessor = 4;

template <int kHeadWidth, int kHeadTiles>
__global__ void __launch_bounds__(kStreamThreads, kHeadTiles == 1 ? kMaxBlocksPerMultiprocessor : 2)
    streamed_attention(const __grid_constant__ AttentionInputs inputs, const DecodeShape shape,
                       PieceRings rings) {
  extern __shared__ __align__(128) uint8_t shared_bytes[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  auto& shared =
      *reinterpret_cast<StreamShared*>(shared_bytes + (rings.keys + rings.values) * kPieceBytes);
  if (threadIdx.x == 0) shared.init(rings);
  __syncthreads();
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  const DecodeWork work = decode_work<kHeadTiles>(inputs, shape, static_cast<int>(blockIdx.y),
                                                  static_cast<int>(blockIdx.x));
  if (work.nobody) return;
  const uint32_t keys = shared_address(shared_bytes);
  const uint32_t values = keys + static_cast<uint32_t>(rings.keys * kPieceBytes);
  const RingTurn key_turn = shared.keys.turn(rings.keys);
  const RingTurn value_turn = shared.values.turn(rings.values);
  auto* scores = reinterpret_cast<float*>(&shared + 1);
  if (warp < kValueWarps) {
    ValueWarp<kHeadWidth, kHeadTiles> value_warp{shared,     scores, values, value_turn, {},
                                                 work.heads, warp,   lane,   shape.c};
    value_warp.run(work.position);
    value_warp.finish(inputs.out + work.row * inputs.out_stride +
                      static_cast<int64_t>(work.first_head) * kHeadWidth);
  } else if (warp < kValueWarps + kScoreWarps) {
    ScoreWarp<kHeadWidth, kHeadTiles> score_warp{
        shared, scores, keys, key_turn, work.heads, warp - kValueWarps, lane};
    load_query<kHeadWidth, kHeadTiles>(score_warp.query, inputs, work, lane);
    score_warp.run(work.position);
  } else {
    copy_pieces<kHeadWidth>(keys, values, key_turn, value_turn, inputs, work, lane);
  }
}

// Rings as deep as let all blocks that a multiprocessor may have be there at once.
template <int kHeadWidth, int kHeadTiles>
Status launch_streamed(const AttentionInputs& inputs, int multiprocessors, cudaStream_t stream) {
  const int group = inputs.query_heads / inputs.pages.kv_heads;
  const int heads = std::min(group, kHeadTiles * kHeadTile);
  const int parts = (group + heads - 1) / heads;
  const DecodeShape shape{group, parts, 0, contract::score_scale(kHeadWidth)};
  const int other_bytes =
      static_cast<int>(sizeof(StreamShared)) + kScoreStages * heads * kScoreStride<kHeadWidth> * 4;
  const int64_t units = int64_t{inputs.step.decode_sequences} * inputs.pages.kv_heads * parts;
  const auto resident = static_cast<int>(std::clamp<int64_t>(
      (units + multiprocessors - 1) / multiprocessors, 1, kMaxBlocksPerMultiprocessor));
  constexpr int kSharedBytes = 228 * 1024, kReservedBytes = 1024, kMostBytes = 227 * 1024;
  const int room = std::min(kMostBytes, kSharedBytes / resident - kReservedBytes);
  const int pieces = std::clamp((room - other_bytes) / kPieceBytes, kMinPieces, kMaxPieces);
  return launch_overlapping("decode_attention", streamed_attention<kHeadWidth, kHeadTiles>,
                            dim3(static_cast<unsigned>(inputs.pages.kv_heads * parts),
                                 static_cast<unsigned>(inputs.step.decode_sequences)),
                            kStreamThreads, pieces * kPieceBytes + other_bytes, stream, inputs,
                            shape, PieceRings{pieces / 2, pieces - pieces / 2});
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

// The spread form when one block a kv head would leave most of the GPU idle for long.
DecodeAttentionForm choose_form(const AttentionInputs& inputs, int multiprocessors) {
  const int64_t units = int64_t{inputs.step.decode_sequences} * inputs.pages.kv_heads;
  const bool idle = 4 * units <= multiprocessors;
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
