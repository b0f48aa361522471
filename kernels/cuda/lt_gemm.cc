#include "kernels/cuda/lt_gemm.h"

#include <algorithm>

namespace exact::cuda {
namespace {

constexpr uint32_t kAlignmentBytes = 16;  // what matmul.h promises
constexpr int kMostCustomOptions = 15;
// Tensor cores of any kind, fp32 sums, bf16 inputs: others (by fma, say) are other arithmetic.
constexpr uint64_t kTensorCores = CUBLASLT_NUMERICAL_IMPL_FLAGS_TENSOR_OP_MASK;
constexpr uint64_t kNumbers =
    CUBLASLT_NUMERICAL_IMPL_FLAGS_ACCUMULATOR_32F | CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16BF;

template <class T>
T read(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute) {
  T value{};
  size_t written = 0;
  // What an algorithm does not have reads as zero.
  (void)cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof value, &written);
  return value;
}

LtConfig config_of(const cublasLtMatmulAlgo_t& algorithm) {
  return {.id = read<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_ID),
          .tile = read<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID),
          .stages = read<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID),
          .cluster = read<uint16_t>(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID),
          .inner_shape = read<uint16_t>(algorithm, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID),
          .swizzle = read<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING),
          .custom = read<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
          .split_k = read<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
          .reduction = read<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)};
}

// A list, or a single value; zero where the algorithm has none.
template <class T>
std::vector<T> capability(const cublasLtMatmulAlgo_t& algorithm,
                          cublasLtMatmulAlgoCapAttributes_t attribute) {
  size_t bytes = 0;
  (void)cublasLtMatmulAlgoCapGetAttribute(&algorithm, attribute, nullptr, 0, &bytes);
  std::vector<T> values(std::max<size_t>(bytes / sizeof(T), 1));
  (void)cublasLtMatmulAlgoCapGetAttribute(&algorithm, attribute, values.data(),
                                          values.size() * sizeof(T), &bytes);
  return values;
}

cublasStatus_t init(cublasLtHandle_t handle, int id, cublasLtMatmulAlgo_t& algorithm) {
  return cublasLtMatmulAlgoInit(handle, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_16BF,
                                CUDA_R_16BF, CUDA_R_16BF, id, &algorithm);
}

}  // namespace

Status lt_status(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return Status(Code::device, std::string(call) + ": " + cublasLtGetStatusString(status));
}

bool LtConfig::claims_one_chain() const {
  return split_k <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

std::string LtConfig::to_string() const {
  const auto part = [](const char* name, auto value) {
    return std::string(name) + std::to_string(value);
  };
  return part("algorithm ", id) + part(" tile ", tile) + part(" stages ", stages) +
         part(" cluster ", cluster) + part(" inner ", inner_shape) + part(" swizzle ", swizzle) +
         part(" custom ", custom) + part(" split ", split_k) + part(" reduction ", reduction);
}

Result<LtGemm> LtGemm::describe(const MatmulInputs& inputs) {
  LtGemm gemm;
  const auto rows = static_cast<uint64_t>(inputs.tokens);
  const auto n = static_cast<uint64_t>(inputs.out_features);
  const auto k = static_cast<uint64_t>(inputs.in_features);
  EXACT_RETURN_IF_ERROR(lt_status(
      cublasLtMatmulDescInit(&gemm.operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescInit"));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  EXACT_RETURN_IF_ERROR(
      lt_status(cublasLtMatmulDescSetAttribute(&gemm.operation_, CUBLASLT_MATMUL_DESC_TRANSA,
                                               &transposed, sizeof transposed),
                "MatmulDescSetAttribute"));
  if (inputs.bias != nullptr) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    EXACT_RETURN_IF_ERROR(
        lt_status(cublasLtMatmulDescSetAttribute(&gemm.operation_, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                                 &epilogue, sizeof epilogue),
                  "MatmulDescSetAttribute"));
    EXACT_RETURN_IF_ERROR(lt_status(
        cublasLtMatmulDescSetAttribute(&gemm.operation_, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                       &inputs.bias, sizeof inputs.bias),
        "MatmulDescSetAttribute"));
  }
  EXACT_RETURN_IF_ERROR(
      lt_status(cublasLtMatrixLayoutInit(&gemm.weight_, CUDA_R_16BF, k, n, inputs.in_features),
                "MatrixLayoutInit"));
  EXACT_RETURN_IF_ERROR(
      lt_status(cublasLtMatrixLayoutInit(&gemm.x_, CUDA_R_16BF, k, rows, inputs.x_stride),
                "MatrixLayoutInit"));
  EXACT_RETURN_IF_ERROR(
      lt_status(cublasLtMatrixLayoutInit(&gemm.out_, CUDA_R_16BF, n, rows, inputs.out_stride),
                "MatrixLayoutInit"));
  return gemm;
}

Result<std::vector<LtAlgorithm>> LtGemm::candidates(cublasLtHandle_t handle, size_t workspace_bytes,
                                                    int most) const {
  cublasLtMatmulPreferenceOpaque_t preference{};
  EXACT_RETURN_IF_ERROR(lt_status(cublasLtMatmulPreferenceInit(&preference), "PreferenceInit"));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    return lt_status(
        cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
        "MatmulPreferenceSetAttribute");
  };
  EXACT_RETURN_IF_ERROR(
      set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace_bytes)));
  // No other preference: asked for what the contract needs by its masks, the heuristic names
  // kernels without wgmma, at a quarter of the rate. What splits K is left out by its claim below.
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    EXACT_RETURN_IF_ERROR(set(attribute, kAlignmentBytes));
  }
  std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(most));
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, pointer(operation_), pointer(weight_), pointer(x_), pointer(out_), pointer(out_),
      &preference, most, found.data(), &count);
  std::vector<LtAlgorithm> algorithms;
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return algorithms;
  EXACT_RETURN_IF_ERROR(lt_status(status, "cublasLtMatmulAlgoGetHeuristic"));
  for (int i = 0; i < count; i++) {
    const auto& result = found[static_cast<size_t>(i)];
    const LtConfig config = config_of(result.algo);
    if (result.state == CUBLAS_STATUS_SUCCESS && config.claims_one_chain())
      algorithms.push_back({result.algo, config});
  }
  return algorithms;
}

std::optional<LtAlgorithm> LtGemm::configured(cublasLtHandle_t handle, size_t workspace_bytes,
                                              const LtConfig& config) const {
  cublasLtMatmulAlgo_t algorithm{};
  if (init(handle, config.id, algorithm) != CUBLAS_STATUS_SUCCESS) return std::nullopt;
  const auto set = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, auto value) {
    return cublasLtMatmulAlgoConfigSetAttribute(&algorithm, attribute, &value, sizeof value) ==
           CUBLAS_STATUS_SUCCESS;
  };
  // An attribute that an algorithm does not have can't be set; it stays what it is.
  (void)set(CUBLASLT_ALGO_CONFIG_TILE_ID, config.tile);
  (void)set(CUBLASLT_ALGO_CONFIG_STAGES_ID, config.stages);
  (void)set(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, config.cluster);
  (void)set(CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, config.inner_shape);
  (void)set(CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, config.swizzle);
  (void)set(CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, config.custom);
  (void)set(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, config.split_k);
  (void)set(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, config.reduction);
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status =
      cublasLtMatmulAlgoCheck(handle, pointer(operation_), pointer(weight_), pointer(x_),
                              pointer(out_), pointer(out_), &algorithm, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.state != CUBLAS_STATUS_SUCCESS ||
      result.workspaceSize > workspace_bytes) {
    return std::nullopt;
  }
  return LtAlgorithm{algorithm, config_of(algorithm)};
}

Result<std::vector<LtAlgorithm>> LtGemm::enumerated(cublasLtHandle_t handle, size_t workspace_bytes,
                                                    int stride, int most) const {
  std::vector<int> ids(256);
  int id_count = 0;
  EXACT_RETURN_IF_ERROR(
      lt_status(cublasLtMatmulAlgoGetIds(handle, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF,
                                         CUDA_R_16BF, CUDA_R_16BF, CUDA_R_16BF,
                                         static_cast<int>(ids.size()), ids.data(), &id_count),
                "cublasLtMatmulAlgoGetIds"));
  ids.resize(static_cast<size_t>(id_count));
  std::vector<LtAlgorithm> algorithms;
  int index = 0;
  const auto try_one = [&](const LtConfig& config) {
    if (index++ % stride != 0 || static_cast<int>(algorithms.size()) >= most) return;
    if (const auto algorithm = configured(handle, workspace_bytes, config))
      algorithms.push_back(*algorithm);
  };
  for (const int id : ids) {
    cublasLtMatmulAlgo_t algorithm{};
    if (init(handle, id, algorithm) != CUBLAS_STATUS_SUCCESS) continue;
    const auto flags =
        capability<uint64_t>(algorithm, CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS).front();
    if ((flags & kTensorCores) == 0 || (flags & kNumbers) != kNumbers) continue;
    const auto customs =
        capability<int32_t>(algorithm, CUBLASLT_ALGO_CAP_CUSTOM_OPTION_MAX).front();
    for (const uint32_t tile : capability<uint32_t>(algorithm, CUBLASLT_ALGO_CAP_TILE_IDS)) {
      for (const uint32_t stages : capability<uint32_t>(algorithm, CUBLASLT_ALGO_CAP_STAGES_IDS)) {
        for (uint16_t cluster = 0; cluster < CUBLASLT_CLUSTER_SHAPE_END; cluster++) {
          for (int custom = 0; custom <= std::min(customs, kMostCustomOptions); custom++) {
            try_one({.id = id,
                     .tile = tile,
                     .stages = stages,
                     .cluster = cluster,
                     .custom = static_cast<uint32_t>(custom)});
          }
        }
      }
    }
  }
  return algorithms;
}

Status LtGemm::run(cublasLtHandle_t handle, const LtAlgorithm& algorithm,
                   const MatmulInputs& inputs, void* workspace, size_t workspace_bytes,
                   cudaStream_t stream) const {
  const float one = 1.0f, zero = 0.0f;
  return lt_status(
      cublasLtMatmul(handle, pointer(operation_), &one, inputs.weight, pointer(weight_), inputs.x,
                     pointer(x_), &zero, inputs.out, pointer(out_), inputs.out, pointer(out_),
                     &algorithm.opaque, workspace, workspace_bytes, stream),
      "cublasLtMatmul");
}

}  // namespace exact::cuda
