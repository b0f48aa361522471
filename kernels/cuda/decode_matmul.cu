// decode_matmul.cu owns the choice of a form and its sizes, and what the forms' launches share.
#include <algorithm>

#include "kernels/cuda/decode_matmul.h"
#include "kernels/cuda/decode_matmul_launch.cuh"

namespace exact::cuda {
namespace {

constexpr int kMaxWarps = 12;
constexpr int kMaxStages = 32;
constexpr int kMaxStageBlocks = 8;
constexpr int kRingBytes = 222 * 1024;
constexpr int kStageBytes = 41 * 1024;  // at most; large stages need few barriers
constexpr int kGroupStageBytes = 20 * 1024;
constexpr int kMaxWarpTokens = 32;  // beyond it mma.sync can't keep up with the memory
constexpr int kMaxGroupRows = 64;
constexpr int64_t kShortShareBytes = 256 * 1024;
constexpr int kAtTheEnd = 1 << 20;  // of begin_next: when all is copied

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

EncodeTensorMap find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                       cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<EncodeTensorMap>(function);
}

// Blocks of 64 k in a stage of at most `bytes`, a power of two.
int stage_blocks_within(int bytes, int block_bytes, int64_t in_features) {
  int blocks = kMaxStageBlocks;
  while (blocks > 1 && (blocks * block_bytes > bytes || blocks * kBlockK > in_features)) {
    blocks /= 2;
  }
  return blocks;
}

// The sizes below are from bench_decode_plans (docs/performance.md).

// As many warps a block as spread the rows over all multiprocessors, in equal passes. Where a
// block's share of the weights is little more than its ring, half as many blocks with twice the
// share are as fast, and leave room for the next kernel to fill its rings meanwhile.
void size_warp_form(DecodeMatmulPlan& plan, int multiprocessors) {
  plan.form = DecodeMatmulPlan::Form::warp;
  plan.token_tiles = plan.tokens <= 8 ? 1 : plan.tokens <= 16 ? 2 : 4;
  const auto tiles = static_cast<int>((plan.out_features + 15) / 16);
  const int each = (tiles + multiprocessors - 1) / multiprocessors;
  const int passes = (each + kMaxWarps - 1) / kMaxWarps;
  int warps = (each + passes - 1) / passes;
  const int64_t share_bytes = int64_t{each} * 16 * plan.in_features * 2;
  const bool is_short = share_bytes <= kShortShareBytes;
  if (is_short) {
    const bool doubles = 2 * share_bytes <= kShortShareBytes || plan.tokens > 16;
    warps = std::min(warps + (doubles ? warps : (warps + 1) / 2), kMaxWarps);
  }
  plan.begin_next = is_short || plan.tokens > 16 ? kAtTheEnd : 0;
  plan.rows = warps * 16;
  const int block_bytes = (plan.rows + plan.token_tiles * 8) * kRowBytes;
  plan.stage_blocks = stage_blocks_within(kStageBytes, block_bytes, plan.in_features);
  plan.stages = std::min(kMaxStages, kRingBytes / (plan.stage_blocks * block_bytes));
}

// One pass over most of the multiprocessors, with all of x that the ring holds beside it; or equal
// passes, which use x again from the L2.
void size_warpgroup_form(DecodeMatmulPlan& plan, int multiprocessors) {
  plan.form = DecodeMatmulPlan::Form::warpgroup;
  plan.token_tiles = (plan.tokens + 7) / 8;
  const int64_t most_rows = int64_t{multiprocessors} * kMaxGroupRows;
  const int64_t passes = (plan.out_features + most_rows - 1) / most_rows;
  const int64_t share =
      (plan.out_features + multiprocessors * passes - 1) / (multiprocessors * passes);
  const auto rows = static_cast<int>((share + 7) / 8 * 8);
  plan.rows = passes > 1 ? rows : std::min(rows + 8, kMaxGroupRows);
  plan.x_stage_blocks = stage_blocks_within(passes > 1 ? 16 * 1024 : 64 * 1024,
                                            plan.token_tiles * 8 * kRowBytes, plan.in_features);
  plan.x_stages = passes > 1 ? 3 : 2;
  const int x_bytes = plan.x_stages * plan.x_stage_blocks * plan.token_tiles * 8 * kRowBytes;
  const int block_bytes = plan.rows * kRowBytes;
  plan.stage_blocks = stage_blocks_within(kGroupStageBytes, block_bytes, plan.in_features);
  plan.stages = std::min(kMaxStages, (kRingBytes - x_bytes) / (plan.stage_blocks * block_bytes));
}

Status refuse(const char* name, int64_t value, const char* range) {
  return Status(Code::unsupported, "decode_matmul: " + std::string(name) + " is " +
                                       std::to_string(value) + "; it must be " + range);
}

}  // namespace

Result<CUtensorMap> matrix_map(const uint16_t* data, int64_t rows, int64_t k, int64_t stride,
                               int box_rows, int blocks) {
  static const EncodeTensorMap encode = find_encoder();
  if (encode == nullptr) {
    return Status(Code::device, "the CUDA driver has no tensor maps: install driver 525 or newer");
  }
  CUtensorMap map{};
  const cuuint64_t sizes[3] = {kBlockK, static_cast<cuuint64_t>(rows),
                               static_cast<cuuint64_t>(k / kBlockK)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(stride) * 2, kRowBytes};
  const cuuint32_t box[3] = {kBlockK, static_cast<cuuint32_t>(box_rows),
                             static_cast<cuuint32_t>(blocks)};
  const cuuint32_t ones[3] = {1, 1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<uint16_t*>(data), sizes, strides,
             box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return Status(Code::device, "a tensor map of " + std::to_string(rows) + " x " +
                                    std::to_string(k) + " was refused (CUresult " +
                                    std::to_string(result) +
                                    "): is the matrix aligned to 16 bytes?");
  }
  return map;
}

void DecodeMatmulPlan::size_for(int multiprocessors) {
  const auto groups = static_cast<int>((out_features + rows - 1) / rows);
  const int whole_clusters = std::max(multiprocessors / cluster, 1) * cluster;
  blocks = std::min(whole_clusters, (groups + cluster - 1) / cluster * cluster);
  if (form == Form::warp) {
    shared_bytes = 2 * kBarrierBytes + stages * stage_blocks * (rows + token_tiles * 8) * kRowBytes;
  } else {
    shared_bytes = 2 * kBarrierBytes + stages * stage_blocks * rows * kRowBytes +
                   x_stages * x_stage_blocks * token_tiles * 8 * kRowBytes;
  }
}

std::string DecodeMatmulPlan::to_string() const {
  const bool wide = form == Form::warpgroup;
  return "decode_matmul (N, K) = (" + std::to_string(out_features) + ", " +
         std::to_string(in_features) + ") tokens " + std::to_string(tokens) + ": " +
         std::to_string(blocks) + " blocks of " + std::to_string(rows) + " rows, " +
         (wide ? "warpgroup" : "warp") + " form, " + std::to_string(stages) + " stages of " +
         std::to_string(stage_blocks * kBlockK) + " k" +
         (wide ? ", of x " + std::to_string(x_stages) + " of " +
                     std::to_string(x_stage_blocks * kBlockK) + ", clusters of " +
                     std::to_string(cluster)
               : "") +
         ", next at " + std::to_string(begin_next) + ", " + std::to_string(shared_bytes) + " bytes";
}

Result<DecodeMatmulPlan> plan_decode_matmul(int tokens, int64_t out_features, int64_t in_features,
                                            int multiprocessors) {
  if (tokens < 1 || tokens > kMaxDecodeTokens) return refuse("tokens", tokens, "from 1 to 64");
  if (out_features < 8 || out_features % 8 != 0 || out_features > 1 << 24) {
    return refuse("out_features", out_features, "a multiple of 8, at most 2^24");
  }
  if (in_features < kBlockK || in_features % kBlockK != 0 || in_features > 1 << 24) {
    return refuse("in_features", in_features, "a multiple of 64, at most 2^24");
  }
  EXACT_CHECK(multiprocessors > 0, "a GPU without multiprocessors");
  DecodeMatmulPlan plan;
  plan.tokens = tokens;
  plan.out_features = out_features;
  plan.in_features = in_features;
  if (tokens <= kMaxWarpTokens) {
    size_warp_form(plan, multiprocessors);
  } else {
    size_warpgroup_form(plan, multiprocessors);
  }
  plan.size_for(multiprocessors);
  return plan;
}

bool prefers_decode_matmul(int64_t tokens, int64_t out_features, int64_t in_features) {
  constexpr int64_t kFewWeights = int64_t{1} << 24;
  return tokens <= kMaxWarpTokens ||
         (tokens <= kMaxDecodeTokens && out_features * in_features > kFewWeights);
}

Status launch_decode_matmul(const DecodeMatmulPlan& plan, const uint16_t* weight, const uint16_t* x,
                            int64_t x_stride, const uint16_t* bias, uint16_t* out,
                            int64_t out_stride, cudaStream_t stream) {
  if (x_stride % 8 != 0 || x_stride < plan.in_features || out_stride % 8 != 0 ||
      out_stride < plan.out_features) {
    return Status(Code::invalid, plan.to_string() + ": strides of " + std::to_string(x_stride) +
                                     " and " + std::to_string(out_stride) +
                                     "; they must be multiples of 8, at least a row");
  }
  const DecodeMatmulOperands operands{weight, x, x_stride, bias, out, out_stride};
  return plan.form == DecodeMatmulPlan::Form::warp ? launch_warp_form(plan, operands, stream)
                                                   : launch_warpgroup_form(plan, operands, stream);
}

}  // namespace exact::cuda
