// attention.h owns rule N5 on the CPU: the layout of the paged cache, and causal attention over it.
//
// A page of a layer holds panels of the chain, which are multiplied where they lie: for every kv
// head, keys as columns, [P / 32][E][32] (pages of 16: [E][16]); then for every kv head values as
// rows, [E / 32, rounded up][P][32].
#pragma once

#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/context.h"

namespace exact::cpu {

// Some query rows of one chunk and the heads that share one kv head: what a thread does at a time.
struct AttentionTask {
  int64_t chunk = 0;
  int32_t kv_head = 0;
  int32_t first_query = 0;  // within the chunk
  int32_t query_count = 0;
};

size_t kv_bytes(const KvGeometry& geometry);

void store_kv(CpuContext& context, const TensorView& keys, const TensorView& values,
              std::span<const SequenceChunk> chunks, int32_t layer, const KvCache& cache);

// `tasks` is working memory that keeps its capacity from call to call.
Status attention(CpuContext& context, const TensorView& query, const KvCache& cache,
                 std::span<const SequenceChunk> chunks, int32_t layer,
                 std::vector<AttentionTask>& tasks, const TensorView& out);

}  // namespace exact::cpu
