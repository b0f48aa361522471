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
  plan.token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8;
  // As many warps a block as spread the rows over all multiprocessors, in equal passes.
  const auto tiles = static_cast<int>((out_features + 15) / 16);
  const int each = (tiles + multiprocessors - 1) / multiprocessors;
  const int passes = (each + kMaxWarps - 1) / kMaxWarps;
  plan.rows = (each + passes - 1) / passes * 16;
  const int block_bytes = (plan.rows + plan.token_tiles * 8) * kRowBytes;
  plan.stage_blocks = kMaxStageBlocks;
  while (plan.stage_blocks > 1 && (plan.stage_blocks * block_bytes > kStageBytes ||
                                   plan.stage_blocks * kBlockK > in_features)) {
    plan.stage_blocks /= 2;
  }
  plan.stages = std::min(kMaxStages, kRingBytes / (plan.stage_blocks * block_bytes));
  plan.size_for(multiprocessors);
  return plan;
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
