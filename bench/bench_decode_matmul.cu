// bench_decode_matmul: the streaming matmul beside cuBLAS, free to split K as PyTorch runs it, and
// beside the copy bandwidth of the same run. Weights rotate over 2 GiB, so that the L2 hides
// nothing; launches are replayed from a CUDA graph. Median of 9 runs in microseconds; one JSON line
// at the end.
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "bench/graph_timer.cuh"
#include "kernels/cuda/decode_matmul.h"

namespace {

using exact::bench::check;
using exact::bench::time_graph;

constexpr size_t kPoolElements = size_t{1} << 30;

}  // namespace

int main() {
  cudaDeviceProp device{};
  if (!exact::bench::has_hopper("bench_decode_matmul", device)) return 0;
  uint16_t *pool = nullptr, *x = nullptr, *out = nullptr;
  check(cudaMalloc(&pool, kPoolElements * 2), "2 GiB of weights");
  check(cudaMalloc(&x, 64 * 16384 * 2), "x");
  check(cudaMalloc(&out, size_t{64} * 160000 * 2), "out");
  exact::bench::fill_bf16<<<1024, 256>>>(pool, kPoolElements);
  exact::bench::fill_bf16<<<64, 256>>>(x, 64 * 16384);
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  cublasHandle_t blas;
  void* workspace = nullptr;
  check(cudaMalloc(&workspace, 32 << 20), "workspace");
  if (cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS) return 3;
  cublasSetStream(blas, stream);
  cublasSetWorkspace(blas, workspace, 32 << 20);

  const double copy_tbps =
      exact::bench::copy_rate_tbps(stream, pool, kPoolElements, device.multiProcessorCount);
  std::printf("%s, copy %.2f TB/s (read and written)\n", device.name, copy_tbps);
  std::printf("%16s %3s %12s %10s %10s %8s\n", "(N, K)", "M", "stream us", "cuBLAS us", "TB/s",
              "of copy");

  std::string json;
  struct {
    int n, k;
  } const shapes[] = {{6144, 4096},  {4096, 4096}, {24576, 4096},
                      {4096, 12288}, {2048, 2048}, {151936, 4096}};
  for (const auto& shape : shapes) {
    for (const int tokens : {1, 8, 16, 32, 64}) {
      const size_t elements = static_cast<size_t>(shape.n) * static_cast<size_t>(shape.k);
      const auto copies = static_cast<int>(std::min<size_t>(kPoolElements / elements, 64));
      const int count = elements > size_t{1} << 28 ? 12 : 96;
      const auto weight = [&](int i) { return pool + static_cast<size_t>(i % copies) * elements; };
      const auto plan =
          exact::cuda::plan_decode_matmul(tokens, shape.n, shape.k, device.multiProcessorCount);
      const double ours = time_graph(stream, count, [&](int i) {
        check(exact::cuda::launch_decode_matmul(*plan, weight(i), x, shape.k, nullptr, out, shape.n,
                                                stream));
      });
      const float one = 1, zero = 0;
      const double theirs = time_graph(stream, count, [&](int i) {
        cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, shape.n, tokens, shape.k, &one, weight(i),
                     CUDA_R_16BF, shape.k, x, CUDA_R_16BF, shape.k, &zero, out, CUDA_R_16BF,
                     shape.n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
      });
      const double tbps = 2.0 * static_cast<double>(elements) / ours * 1e-6;
      std::printf("(%6d, %5d) %3d %12.2f %10.2f %10.2f %7.0f%%\n", shape.n, shape.k, tokens, ours,
                  theirs, tbps, 100 * tbps / copy_tbps);
      json += (json.empty() ? "" : ", ") + std::string("{\"n\": ") + std::to_string(shape.n) +
              ", \"k\": " + std::to_string(shape.k) + ", \"m\": " + std::to_string(tokens) +
              ", \"stream_us\": " + std::to_string(ours) +
              ", \"cublas_us\": " + std::to_string(theirs) + "}";
    }
  }
  std::printf(
      "{\"bench\": \"decode_matmul\", \"device\": \"%s\", \"copy_tbps\": %.3f, \"rows\": [%s]}\n",
      device.name, copy_tbps, json.c_str());
  return 0;
}
