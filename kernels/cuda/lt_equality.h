// lt_equality.h owns the test that admits an algorithm of a library: random data of a shape, on
// which every output has to have plain_matmul's bits.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/cuda/lt_gemm.h"
#include "kernels/cuda/memory.h"

namespace exact::cuda {

// Memory for a library's own use, and nothing else: its handle, and what it may write to.
struct LtContext {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};

class EqualityTest {
 public:
  // Takes device memory for x, the weights and two outputs of `shape.tokens` rows, and runs
  // plain_matmul. Of the pointers only whether there is a bias is read. exhausted: no memory.
  static Result<std::unique_ptr<EqualityTest>> create(const MatmulInputs& shape,
                                                      cudaStream_t stream);
  ~EqualityTest();
  EqualityTest(const EqualityTest&) = delete;
  EqualityTest& operator=(const EqualityTest&) = delete;

  // Whether all outputs of the first `tokens` rows are equal; waits for the stream. An algorithm
  // that the library refuses to run is not.
  Result<bool> equal(const LtContext& library, const LtAlgorithm& algorithm, int64_t tokens) const;

  // Its shape, with its own data.
  const MatmulInputs& inputs() const { return inputs_; }

 private:
  EqualityTest(const MatmulInputs& shape, cudaStream_t stream) : inputs_(shape), stream_(stream) {}
  template <class T>
  Result<T*> take(int64_t count);

  MatmulInputs inputs_;
  cudaStream_t stream_;
  std::vector<void*> blocks_;
  uint16_t* want_ = nullptr;
  uint16_t* got_ = nullptr;
  uint32_t* counts_ = nullptr;
};

}  // namespace exact::cuda
