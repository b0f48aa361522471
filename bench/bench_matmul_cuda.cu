// bench_matmul_cuda: matrix products of many rows. cuBLASLt free to split K, as PyTorch runs it by
// default; the first algorithm of its heuristic without split K; what LtMatmul chose and tested.
// bench/torch_matmul.py times PyTorch itself in the same way. Weights rotate over 2 GiB, launches
// are replayed from CUDA graphs, the three in turn; medians of 9 in microseconds; one JSON line at
// the end. The limit beside them: 989 TFLOP/s by the data sheet, and the weights at the copy
// bandwidth.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "bench/graph_timer.cuh"
#include "kernels/cuda/lt_compare.h"
#include "kernels/cuda/lt_gemm.h"
#include "kernels/cuda/matmul.h"

namespace {

using exact::bench::check;
using exact::cuda::LtGemm;
using exact::cuda::MatmulInputs;

constexpr int64_t kPoolElements = int64_t{1} << 30;
constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr int64_t kMostTokens = 4096;
constexpr int kReplays = 9;

using Launch = std::function<void(int)>;

// `count` launches, recorded.
class Recording {
 public:
  Recording(cudaStream_t stream, int count, const Launch& launch) : stream_(stream), count_(count) {
    cudaGraph_t graph;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < count; i++) launch(i);
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&runnable_, graph, 0), "graph");
    cudaGraphDestroy(graph);
    check(cudaEventCreate(&begin_), "event");
    check(cudaEventCreate(&end_), "event");
  }
  ~Recording() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaGraphExecDestroy(runnable_);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void replay(bool timed) {
    float ms = 0;
    check(cudaEventRecord(begin_, stream_), "event");
    check(cudaGraphLaunch(runnable_, stream_), "graph");
    check(cudaEventRecord(end_, stream_), "event");
    check(cudaStreamSynchronize(stream_), "run");
    check(cudaEventElapsedTime(&ms, begin_, end_), "event");
    if (timed) times_.push_back(1e3 * ms / count_);
  }
  double median_us() {
    std::nth_element(times_.begin(), times_.begin() + kReplays / 2, times_.end());
    return times_[kReplays / 2];
  }

 private:
  cudaStream_t stream_;
  int count_;
  cudaGraphExec_t runnable_{};
  cudaEvent_t begin_{}, end_{};
  std::vector<double> times_;
};

struct Memory {
  uint16_t *pool = nullptr, *x = nullptr, *out = nullptr;
  void* workspace = nullptr;
};

// The first of the heuristic's list with everything allowed.
exact::cuda::LtAlgorithm free_choice(cublasLtHandle_t handle, const MatmulInputs& inputs) {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t weight, x, out;
  cublasLtMatmulPreferenceOpaque_t preference;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const auto n = static_cast<uint64_t>(inputs.out_features);
  const auto k = static_cast<uint64_t>(inputs.in_features);
  const auto tokens = static_cast<uint64_t>(inputs.tokens);
  cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  cublasLtMatmulDescSetAttribute(&operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                 sizeof transposed);
  cublasLtMatrixLayoutInit(&weight, CUDA_R_16BF, k, n, inputs.in_features);
  cublasLtMatrixLayoutInit(&x, CUDA_R_16BF, k, tokens, inputs.x_stride);
  cublasLtMatrixLayoutInit(&out, CUDA_R_16BF, n, tokens, inputs.out_stride);
  cublasLtMatmulPreferenceInit(&preference);
  cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &kWorkspaceBytes, sizeof kWorkspaceBytes);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  cublasLtMatmulAlgoGetHeuristic(handle, &operation, &weight, &x, &out, &out, &preference, 1,
                                 &result, &found);
  return {result.algo, {}};
}

struct Times {
  double free_us, first_us, chosen_us;
};

Times time_shape(cublasLtHandle_t handle, exact::cuda::LtMatmul& library, const Memory& memory,
                 int64_t n, int64_t k, int64_t tokens, cudaStream_t stream) {
  const int64_t copies = std::clamp<int64_t>(kPoolElements / (n * k), 1, 64);
  const auto inputs = [&](int i) {
    return MatmulInputs{.x = memory.x,
                        .x_stride = k,
                        .weight = memory.pool + i % copies * (n * k),
                        .bias = nullptr,
                        .out = memory.out,
                        .out_stride = n,
                        .tokens = tokens,
                        .out_features = n,
                        .in_features = k};
  };
  const LtGemm gemm = *LtGemm::describe(inputs(0));
  const auto run = [&](const exact::cuda::LtAlgorithm& algorithm, int i) {
    check(gemm.run(handle, algorithm, inputs(i), memory.workspace, kWorkspaceBytes, stream));
  };
  const exact::cuda::LtAlgorithm free_algorithm = free_choice(handle, inputs(0));
  const exact::cuda::LtAlgorithm first = gemm.candidates(handle, kWorkspaceBytes, 64)->at(0);
  check(library.prepare(inputs(0), stream));
  const double flops = 2.0 * static_cast<double>(n * k) * static_cast<double>(tokens);
  const int count = flops > 5e11 ? 4 : flops > 5e10 ? 12 : 48;
  Recording free_run(stream, count, [&](int i) { run(free_algorithm, i); });
  Recording first_run(stream, count, [&](int i) { run(first, i); });
  Recording chosen_run(stream, count, [&](int i) { check(library.launch(inputs(i), stream)); });
  for (int replay = 0; replay <= kReplays; replay++) {
    for (Recording* recording : {&free_run, &first_run, &chosen_run}) recording->replay(replay > 0);
  }
  return {free_run.median_us(), first_run.median_us(), chosen_run.median_us()};
}

}  // namespace

int main() {
  cudaDeviceProp device{};
  if (!exact::bench::has_hopper("bench_matmul_cuda", device)) return 0;
  Memory memory;
  check(cudaMalloc(&memory.pool, kPoolElements * 2), "2 GiB of weights");
  check(cudaMalloc(&memory.x, kMostTokens * 16384 * 2), "x");
  check(cudaMalloc(&memory.out, kMostTokens * 32768 * 2), "out");
  check(cudaMalloc(&memory.workspace, kWorkspaceBytes), "workspace");
  using exact::cuda::TestSide;
  check(exact::cuda::fill_test_data(memory.pool, kPoolElements / 4096, 4096, TestSide::weight, 1,
                                    nullptr));
  check(exact::cuda::fill_test_data(memory.x, 16384, kMostTokens, TestSide::weight, 2, nullptr));
  cudaStream_t stream;
  cublasLtHandle_t handle;
  check(cudaStreamCreate(&stream), "stream");
  if (cublasLtCreate(&handle) != CUBLAS_STATUS_SUCCESS) return 3;
  auto library = exact::cuda::LtMatmul::create(device.multiProcessorCount);
  check(library.status());
  std::printf("%s, %s\n%16s %5s %10s %10s %10s %9s %9s\n", device.name,
              (*library)->library_version().c_str(), "(N, K)", "M", "free us", "first us",
              "chosen us", "TFLOP/s", "of free");
  std::string json;
  struct {
    int64_t n, k;
  } const shapes[] = {{6144, 4096},  {4096, 4096}, {24576, 4096},
                      {4096, 12288}, {2048, 2048}, {151936, 4096}};
  for (const auto& shape : shapes) {
    for (const int64_t tokens : {64, 128, 256, 512, 4096}) {
      if (shape.n * tokens > int64_t{1} << 27) continue;
      const Times times = time_shape(handle, **library, memory, shape.n, shape.k, tokens, stream);
      const double flops = 2.0 * static_cast<double>(shape.n * shape.k * tokens);
      char line[256];
      std::snprintf(line, sizeof line, "(%6d, %5d) %5d %10.2f %10.2f %10.2f %9.0f %8.0f%%",
                    static_cast<int>(shape.n), static_cast<int>(shape.k), static_cast<int>(tokens),
                    times.free_us, times.first_us, times.chosen_us, flops / times.chosen_us * 1e-6,
                    100 * times.chosen_us / times.free_us);
      std::printf("%s\n", line);
      std::snprintf(line, sizeof line,
                    "{\"n\": %d, \"k\": %d, \"m\": %d, \"free_us\": %.3f, \"first_us\": %.3f, "
                    "\"chosen_us\": %.3f}",
                    static_cast<int>(shape.n), static_cast<int>(shape.k), static_cast<int>(tokens),
                    times.free_us, times.first_us, times.chosen_us);
      json += (json.empty() ? "" : ", ") + std::string(line);
    }
  }
  std::printf(
      "{\"bench\": \"matmul_cuda\", \"device\": \"%s\", \"library\": \"%s\", \"rows\": [%s]}\n",
      device.name, (*library)->library_version().c_str(), json.c_str());
  return 0;
}
