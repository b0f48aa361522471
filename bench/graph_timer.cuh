// graph_timer.cuh owns what the benchmarks of CUDA kernels share: launches timed as a recorded
// graph, data to run on, and the rate of a copy, which the others stand beside.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/base/result.h"

namespace exact::bench {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(3);
}
inline void check(const Status& status) {
  if (status.is_ok()) return;
  std::fprintf(stderr, "%s\n", status.to_string().c_str());
  std::exit(3);
}

// False, and says so, where there is no Hopper GPU.
inline bool has_hopper(const char* program, cudaDeviceProp& device) {
  if (cudaGetDeviceProperties(&device, 0) == cudaSuccess && device.major == 9) return true;
  std::printf("%s: no Hopper GPU here, nothing to measure\n", program);
  return false;
}

// Microseconds of one of `count` launches, recorded in a CUDA graph: the median of `runs` replays
// after one that is not counted.
inline double time_graph(cudaStream_t stream, int count, const std::function<void(int)>& launch,
                         int runs = 9) {
  cudaGraph_t graph;
  cudaGraphExec_t runnable;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < count; i++) launch(i);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&runnable, graph, 0), "graph");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int run = 0; run <= runs; run++) {
    float ms = 0;
    check(cudaEventRecord(begin, stream), "event");
    check(cudaGraphLaunch(runnable, stream), "graph");
    check(cudaEventRecord(end, stream), "event");
    check(cudaStreamSynchronize(stream), "run");
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (run > 0) times.push_back(1e3 * ms / count);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(runnable);
  cudaGraphDestroy(graph);
  const auto middle = times.begin() + runs / 2;
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

// bf16 in about (-2, 2), no two neighbours alike.
static __global__ void fill_bf16(uint16_t* data, size_t size) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < size;
       i += size_t{gridDim.x} * blockDim.x) {
    const auto hash = static_cast<uint32_t>(i * 2654435761u);
    data[i] = static_cast<uint16_t>((hash & 0x80ffu) | 0x3c00u | (hash >> 9 & 0x0300u));
  }
}

static __global__ void copy_words(const uint4* from, uint4* to, size_t size) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < size;
       i += size_t{gridDim.x} * blockDim.x) {
    to[i] = from[i];
  }
}

// Bytes read and written a second, in 10^12, by copies between the halves of a pool that is far
// larger than the L2.
inline double copy_rate_tbps(cudaStream_t stream, uint16_t* pool, size_t elements,
                             int multiprocessors) {
  const size_t half = elements / 2;
  const double us = time_graph(stream, 4, [&](int i) {
    const size_t from = static_cast<size_t>(i % 2) * half;
    copy_words<<<16 * multiprocessors, 512, 0, stream>>>(
        reinterpret_cast<const uint4*>(pool + from), reinterpret_cast<uint4*>(pool + (half - from)),
        half / 8);
  });
  return 4.0 * static_cast<double>(half) / us * 1e-6;
}

}  // namespace exact::bench
