#include "kernels/cuda/lt_equality.h"

#include <algorithm>
#include <array>

#include "kernels/cuda/lt_compare.h"

namespace exact::cuda {

EqualityTest::~EqualityTest() {
  for (void* block : blocks_) cudaFree(block);
}

template <class T>
Result<T*> EqualityTest::take(int64_t count) {
  void* block = nullptr;
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  const cudaError_t error = cudaMalloc(&block, bytes);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return Status(error == cudaErrorMemoryAllocation ? Code::exhausted : Code::device,
                  "testing a matrix product needs " + std::to_string(bytes) +
                      " bytes of device memory: " + cudaGetErrorString(error));
  }
  blocks_.push_back(block);
  return static_cast<T*>(block);
}

Result<std::unique_ptr<EqualityTest>> EqualityTest::create(const MatmulInputs& shape,
                                                           cudaStream_t stream) {
  std::unique_ptr<EqualityTest> test(new EqualityTest(shape, stream));
  const int64_t n = shape.out_features, k = shape.in_features, tokens = shape.tokens;
  EXACT_ASSIGN(uint16_t * x, test->take<uint16_t>(tokens * k));
  EXACT_ASSIGN(uint16_t * weight, test->take<uint16_t>(n * k));
  EXACT_ASSIGN(uint16_t * bias, test->take<uint16_t>(n));
  EXACT_ASSIGN(test->want_, test->take<uint16_t>(tokens * n));
  EXACT_ASSIGN(test->got_, test->take<uint16_t>(tokens * n));
  EXACT_ASSIGN(test->counts_, test->take<uint32_t>(kDifferenceCounts));
  EXACT_RETURN_IF_ERROR(fill_test_data(x, tokens, k, TestSide::x, 1, stream));
  EXACT_RETURN_IF_ERROR(fill_test_data(weight, n, k, TestSide::weight, 2, stream));
  EXACT_RETURN_IF_ERROR(fill_test_data(bias, 1, n, TestSide::bias, 3, stream));
  MatmulInputs& data = test->inputs_;
  data.x = x;
  data.weight = weight;
  if (shape.bias != nullptr) data.bias = bias;
  data.x_stride = k;
  data.out_stride = n;
  data.out = test->want_;
  EXACT_RETURN_IF_ERROR(launch_plain_matmul(data, stream));
  data.out = test->got_;
  return test;
}

Result<bool> EqualityTest::equal(const LtContext& library, const LtAlgorithm& algorithm,
                                 int64_t tokens) const {
  MatmulInputs data = inputs_;
  data.tokens = tokens;
  const auto bytes = static_cast<size_t>(tokens * data.out_features) * 2;
  EXACT_RETURN_IF_ERROR(
      cuda_status(cudaMemsetAsync(got_, 0xff, bytes, stream_), "cudaMemsetAsync"));
  EXACT_ASSIGN(const LtGemm gemm, LtGemm::describe(data));
  if (!gemm.run(library.handle, algorithm, data, library.workspace, library.workspace_bytes,
                stream_)) {
    return false;
  }
  const Compared want{want_, data.out_features}, got{got_, data.out_features};
  EXACT_RETURN_IF_ERROR(count_differences(want, got, tokens, data.out_features, counts_, stream_));
  std::array<uint32_t, kDifferenceCounts> counts;
  EXACT_RETURN_IF_ERROR(cuda_status(
      cudaMemcpyAsync(counts.data(), counts_, sizeof counts, cudaMemcpyDeviceToHost, stream_),
      "cudaMemcpyAsync"));
  EXACT_RETURN_IF_ERROR(cuda_status(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"));
  return std::all_of(counts.begin(), counts.end(), [](uint32_t count) { return count == 0; });
}

}  // namespace exact::cuda
