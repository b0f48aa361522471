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
//         sums; one copies values to a ring, eight turn scores into probabilities, 32 keys each.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "kernels/cuda/spread_columns.cuh"

namespace exact::cuda {
namespace {

constexpr int kMaxKeysPadding = contract::kMaxKeyBlock;
constexpr int kMinKeyBlock = 64;
constexpr int kRowsPerPass = 256;  // query heads that the scratch has room for, or one sequence's

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
  const SpreadScratch scratch{
      scores, scores + int64_t{pass} * inputs.query_heads * blocks * Head::kKeys, blocks};
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
