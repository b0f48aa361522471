// target_logprobs: out[i] = (x - max) - log(sum exp(x_j - max)), x = logits[i, targets[i]]    rule
// N7 shapes  logits (rows, V) bf16, contiguous; V % 8 == 0, 32 <= V <= 2^20; targets, out (rows)
// order   of rule N7 for V, a chain a thread (cluster_row.cuh)
// rounds  fp32 as the contract writes it; CUDA's expf has the bits of contract::exp
// launch  a cluster of blocks a row, of 1,024 threads together (32 where V <= 2048): each keeps its
//         part of the row in shared memory, where two passes read it
#include "kernels/base/check.h"
#include "kernels/contract/shape.h"
#include "kernels/cuda/cluster_row.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/logits.h"
#include "kernels/cuda/logits_plan.h"

namespace exact::cuda {
namespace {

constexpr int kControlBytes = static_cast<int>(sizeof(RowControl) + 15) / 16 * 16;

template <int kChains, int kCluster, bool kShared>
__global__ void __launch_bounds__(kChains / kCluster, (kCluster + 1) / 2)
    target_logprobs(const uint16_t* logits, const RowShape shape, const int32_t* targets,
                    float* out) {
  auto* const control = reinterpret_cast<RowControl*>(cluster_shared);
  let_next_kernel_begin();
  RowPart<kChains, kCluster, kShared> part(shape, kControlBytes);
  part.init_barriers(control);
  const auto index = static_cast<int64_t>(blockIdx.x) / kCluster;
  wait_for_earlier_kernels();
  part.begin(logits + index * shape.vocabulary, control);
  if constexpr (kCluster > 1) sync_cluster<kCluster>();  // all blocks are there
  float chain_max = 0.0f, largest = 0.0f;
  uint32_t magnitude = 0;
  part.find_largest(control, &chain_max, &largest, &magnitude);
  if (magnitude >= 0x7f80u) {
    if (part.chain == 0) out[index] = float_from_bits(0x7fffffffu);
    return;
  }
  float sum = 0.0f;
  part.visit([&](int, const auto& x, bool present) {
    if (!present) return;
    for (const float value : x) sum = sum + expf(value - largest);
  });
  give_warp_sum<kCluster>(sum, part.warp, part.lane, control->raw_sum);
  sync_cluster<kCluster>();
  if (part.chain >= 32) return;
  const float total = total_of_warps<kChains>(control->raw_sum, part.lane);
  if (part.lane == 0) {
    out[index] = logprob_of(bf16_to_float(part.row()[targets[index]]), largest, total);
  }
}

// As many blocks a row as keep all multiprocessors busy, and no more: where there are rows enough,
// what the blocks of a cluster tell each other costs up to four times what they gain.
int choose_cluster(int64_t rows) {
  return rows <= 16 ? 8 : rows <= 33 ? 4 : rows <= 66 ? 2 : 1;
}

}  // namespace

int row_part_bytes(int64_t vocabulary, int cluster) {
  const int chains = vocabulary <= kOneWarpVocabulary ? 32 : contract::kLogSumThreads;
  const RowShape shape = row_shape(vocabulary);
  const int group_rounds = (shape.grouped + 4 * chains - 1) / (4 * chains);
  const int one_rounds = (shape.vocabulary - shape.grouped + chains - 1) / chains;
  return (4 * group_rounds + one_rounds) * (chains / cluster) * static_cast<int>(sizeof(uint16_t));
}

Result<LogitsPlan> plan_target_logprobs(int64_t vocabulary, int64_t rows, int cluster) {
  EXACT_RETURN_IF_ERROR(contract::check_vocabulary(vocabulary));
  EXACT_CHECK(cluster == 0 || cluster == 1 || cluster == 2 || cluster == 4 || cluster == 8,
              "a cluster of 1, 2, 4 or 8 blocks");
  LogitsPlan plan;
  plan.vocabulary = vocabulary;
  plan.count = rows;
  plan.cluster = cluster == 0 ? choose_cluster(rows) : cluster;
  if (vocabulary <= kOneWarpVocabulary) plan.cluster = 1;
  const int part = row_part_bytes(vocabulary, plan.cluster);
  plan.in_shared = kControlBytes + part <= kMaxSharedBytes;
  plan.shared_bytes = kControlBytes + (plan.in_shared ? part : 0);
  return plan;
}

Status launch_target_logprobs(const LogitsPlan& plan, const uint16_t* logits,
                              const int32_t* targets, float* out, cudaStream_t stream) {
  return with_row_part(plan, [&]<int kChains, int kCluster, bool kShared>() {
    return launch_overlapped("target_logprobs", target_logprobs<kChains, kCluster, kShared>,
                             row_launch_shape(plan, kChains), stream, logits,
                             row_shape(plan.vocabulary), targets, out);
  });
}

Status launch_target_logprobs(const uint16_t* logits, int64_t rows, int64_t vocabulary,
                              const int32_t* targets, float* out, cudaStream_t stream) {
  EXACT_ASSIGN(const LogitsPlan plan, plan_target_logprobs(vocabulary, rows));
  return launch_target_logprobs(plan, logits, targets, out, stream);
}

}  // namespace exact::cuda
