// bench_prefill_attention: causal attention of prefill over paged keys and values, 32 query heads
// and 8 kv heads, beside the tensor cores' rate that its products come to. Median of 9 runs of 10
// launches from a CUDA graph. bench/sdpa_flash.py times stock PyTorch on the same shapes.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "bench/graph_timer.cuh"
#include "kernels/cuda/attention.h"

namespace {

using exact::bench::check;
using exact::cuda::kQueryTile;

constexpr int kLaunches = 10;
constexpr int kQueryHeads = 32;
constexpr int kKvHeads = 8;

// Sums of four uniforms: about normal, as activations are.
__global__ void fill(uint16_t* data, size_t size, uint32_t seed, float scale) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < size;
       i += size_t{gridDim.x} * blockDim.x) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u + seed * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    const auto sum =
        static_cast<float>((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48)) *
        0x1p-16f;
    data[i] = exact::float_to_bf16((sum - 2.0f) * scale);
  }
}

template <class T>
T* to_device(const std::vector<T>& host) {
  T* device = nullptr;
  check(cudaMalloc(&device, host.size() * sizeof(T)), "memory");
  check(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  return device;
}

struct Shape {
  int sequences, rows, first_position, head_width, page_size;
};

void build(const Shape& shape, exact::cuda::AttentionInputs& inputs) {
  const int context = shape.first_position + shape.rows;
  const int pages = (context + shape.page_size - 1) / shape.page_size;
  std::vector<exact::cuda::DeviceSequence> sequences;
  std::vector<exact::cuda::QueryTile> tiles;
  std::vector<int32_t> table;
  for (int s = 0; s < shape.sequences; s++) {
    sequences.push_back({s * shape.rows, shape.rows, shape.first_position, s * pages});
    // 7919 is coprime to the count of pages: a permutation, scattered.
    const int all = shape.sequences * pages;
    for (int p = 0; p < pages; p++)
      table.push_back(static_cast<int32_t>(int64_t{s * pages + p} * 7919 % all));
  }
  for (int first = (shape.rows - 1) / kQueryTile * kQueryTile; first >= 0; first -= kQueryTile)
    for (int s = 0; s < shape.sequences; s++) tiles.push_back({s, first});
  inputs.query_heads = kQueryHeads;
  inputs.query_stride = inputs.out_stride = kQueryHeads * shape.head_width;
  inputs.pages = {nullptr, shape.page_size, kKvHeads, shape.head_width,
                  exact::cuda::column_blocks(shape.head_width)};
  const size_t elements = static_cast<size_t>(inputs.pages.page_elements()) * table.size();
  const size_t rows = static_cast<size_t>(shape.sequences) * static_cast<size_t>(shape.rows);
  const size_t row_elements = static_cast<size_t>(inputs.query_stride);
  uint16_t* query = nullptr;
  check(cudaMalloc(&inputs.pages.layer, elements * 2), "pages");
  check(cudaMalloc(&query, rows * row_elements * 2), "query");
  check(cudaMalloc(&inputs.out, rows * row_elements * 2), "out");
  fill<<<1024, 256>>>(inputs.pages.layer, elements, 1, 1.7f);
  fill<<<1024, 256>>>(query, rows * row_elements, 2, 1.7f);
  inputs.query = query;
  inputs.step.rows = static_cast<int32_t>(rows);
  inputs.step.query_tiles = static_cast<int32_t>(tiles.size());
  inputs.step.sequences = to_device(sequences);
  inputs.step.tiles = to_device(tiles);
  inputs.step.pages = to_device(table);
}

void free_all(const exact::cuda::AttentionInputs& inputs) {
  for (const void* memory :
       {static_cast<const void*>(inputs.pages.layer), static_cast<const void*>(inputs.query),
        static_cast<const void*>(inputs.out), static_cast<const void*>(inputs.step.sequences),
        static_cast<const void*>(inputs.step.tiles), static_cast<const void*>(inputs.step.pages)}) {
    check(cudaFree(const_cast<void*>(memory)), "free");
  }
}

}  // namespace

int main() {
  cudaDeviceProp device{};
  if (!exact::bench::has_hopper("bench_prefill_attention", device)) return 0;
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  std::printf("%s, %d query heads, %d kv heads\n", device.name, kQueryHeads, kKvHeads);
  std::printf("%9s %5s %8s %5s %5s %10s %10s\n", "sequences", "rows", "position", "width", "page",
              "us", "TFLOP/s");
  std::string json;
  const Shape shapes[] = {{8, 2048, 0, 128, 16},  {8, 2048, 0, 128, 64},   {8, 2048, 0, 64, 16},
                          {8, 2048, 0, 64, 128},  {8, 256, 8192, 128, 16}, {1, 256, 8192, 128, 16},
                          {8, 256, 8192, 64, 16}, {1, 8192, 0, 128, 16},   {32, 300, 0, 128, 16}};
  for (const Shape& shape : shapes) {
    exact::cuda::AttentionInputs inputs;
    build(shape, inputs);
    const double us = exact::bench::time_graph(stream, kLaunches, [&](int) {
      check(exact::cuda::launch_prefill_attention(inputs, device.multiProcessorCount, stream));
    });
    free_all(inputs);
    // Two products of E multiplications and additions for each pair of a row and a key it sees.
    const double pairs = static_cast<double>(shape.rows) *
                         (shape.first_position + (static_cast<double>(shape.rows) + 1) / 2);
    const double flop = 4.0 * shape.sequences * kQueryHeads * pairs * shape.head_width;
    std::printf("%9d %5d %8d %5d %5d %10.1f %10.0f\n", shape.sequences, shape.rows,
                shape.first_position, shape.head_width, shape.page_size, us, flop / us * 1e-6);
    json += std::string(json.empty() ? "" : ", ") +
            "{\"sequences\": " + std::to_string(shape.sequences) +
            ", \"rows\": " + std::to_string(shape.rows) +
            ", \"position\": " + std::to_string(shape.first_position) +
            ", \"width\": " + std::to_string(shape.head_width) +
            ", \"page\": " + std::to_string(shape.page_size) + ", \"us\": " + std::to_string(us) +
            "}";
  }
  std::printf("{\"bench\": \"prefill_attention\", \"device\": \"%s\", \"rows\": [%s]}\n",
              device.name, json.c_str());
  return 0;
}
