// attention.h owns rule N5 on the CPU: the layout of the paged cache, and causal attention over it.
//
// Page p of layer l: keys of every kv head as [G][E][P], then values as [G][P][E]. A page of keys
// is thus a panel of the chain with keys as columns, and a page of values one with keys as rows.
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
