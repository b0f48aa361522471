// lt_gemm.h owns how a linear layer is said to cuBLASLt, and what tells two of its algorithms
// apart. Row-major x (T, K), weight (N, K), out (T, N) are its column-major D (N, T) = A^T (K, N)^T
// * B (K, T): nothing is transposed in memory. Sums are fp32, one rounding to bf16, the bias before
// it.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/result.h"
#include "kernels/cuda/matmul.h"

namespace exact::cuda {

// All of an algorithm's configuration that cuBLASLt lets be read.
struct LtConfig {
  int32_t id = 0;
  uint32_t tile = 0;
  uint32_t stages = 0;
  uint16_t cluster = 0;
  uint16_t inner_shape = 0;
  uint32_t swizzle = 0;
  uint32_t custom = 0;
  int32_t split_k = 1;
  uint32_t reduction = 0;

  auto operator<=>(const LtConfig&) const = default;
  // What the contract asks for by name; whether it is true is for the equality test.
  bool claims_one_chain() const;
  std::string to_string() const;
};

// What cuBLASLt runs, and what it is called.
struct LtAlgorithm {
  cublasLtMatmulAlgo_t opaque{};
  LtConfig config;
};

// One product: the descriptors, without memory of their own.
class LtGemm {
 public:
  // device: what cuBLASLt refused of these shapes.
  static Result<LtGemm> describe(const MatmulInputs& inputs);

  // Those of the heuristic's first `most` that claim to be one chain, in its order, for pointers
  // aligned to 16 bytes.
  Result<std::vector<LtAlgorithm>> candidates(cublasLtHandle_t handle, size_t workspace_bytes,
                                              int most) const;

  // The algorithm of a configuration; none where the library does not have it for these shapes.
  std::optional<LtAlgorithm> configured(cublasLtHandle_t handle, size_t workspace_bytes,
                                        const LtConfig& config) const;

  // Every `stride`-th of all configurations without split K that the library can be asked for, also
  // those that its heuristic never names: at most `most` of those it runs.
  Result<std::vector<LtAlgorithm>> enumerated(cublasLtHandle_t handle, size_t workspace_bytes,
                                              int stride, int most) const;

  // out = ..., on the stream.
  Status run(cublasLtHandle_t handle, const LtAlgorithm& algorithm, const MatmulInputs& inputs,
             void* workspace, size_t workspace_bytes, cudaStream_t stream) const;

 private:
  // cuBLASLt takes its descriptors by a pointer that it does not change.
  static cublasLtMatmulDesc_t pointer(const cublasLtMatmulDescOpaque_t& descriptor) {
    return const_cast<cublasLtMatmulDesc_t>(&descriptor);
  }
  static cublasLtMatrixLayout_t pointer(const cublasLtMatrixLayoutOpaque_t& layout) {
    return const_cast<cublasLtMatrixLayout_t>(&layout);
  }

  cublasLtMatmulDescOpaque_t operation_{};
  cublasLtMatrixLayoutOpaque_t weight_{}, x_{}, out_{};
};

// "cublasLtMatmul: CUBLAS_STATUS_..." as a Status; ok for success.
Status lt_status(cublasStatus_t status, const char* call);

}  // namespace exact::cuda
