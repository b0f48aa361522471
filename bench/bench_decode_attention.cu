// bench_decode_attention: one step's decode attention, both forms, beside the copy bandwidth of the
// same run. The cache rotates over more than the L2 holds; launches are replayed from a CUDA graph.
// Median of 9 runs in microseconds; "of copy" is the bytes of K and V over the time, beside that
// bandwidth; one JSON line at the end.
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
using exact::bench::time_graph;
using exact::cuda::DecodeAttentionForm;

constexpr size_t kPoolElements = size_t{1} << 30;
constexpr size_t kOtherThanCached = size_t{64} << 20;  // elements between two uses of one

struct Case {
  int batch, context, query_heads, kv_heads, head_width, page_size;
  int longest;  // contexts of the batch: all alike, or the first of this length
};

struct Device {
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
  uint16_t *pool = nullptr, *query = nullptr, *out = nullptr;
  exact::cuda::DeviceSequence* sequences = nullptr;
  int32_t* pages = nullptr;
  void* scratch = nullptr;
  size_t scratch_bytes = 0;
};

template <class T>
void upload(T* to, const std::vector<T>& from) {
  check(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
}

// The step's tables on the device; pages of a sequence lie apart. Returns the pages in use.
size_t place(const Device& device, const Case& c, exact::cuda::DeviceStep& step) {
  std::vector<exact::cuda::DeviceSequence> sequences;
  int32_t pages = 0;
  for (int i = 0; i < c.batch; i++) {
    const int context = i == 0 && c.longest > 0 ? c.longest : c.context;
    sequences.push_back({i, 1, context - 1, pages});
    pages += (context + c.page_size - 1) / c.page_size;
    step.max_decode_context = std::max(step.max_decode_context, context);
  }
  std::vector<int32_t> table(static_cast<size_t>(pages));
  for (size_t i = 0; i < table.size(); i++)
    table[i] = static_cast<int32_t>(i * 7919 % table.size());
  if (table.size() % 7919 == 0) std::exit(3);
  upload(device.sequences, sequences);
  upload(device.pages, table);
  step.rows = step.decode_sequences = c.batch;
  step.sequences = device.sequences;
  step.pages = device.pages;
  return table.size();
}

double measure(const Device& device, const Case& c, DecodeAttentionForm form, double& bytes) {
  exact::cuda::AttentionInputs inputs;
  const size_t pages = place(device, c, inputs.step);
  inputs.pages = {device.pool, c.page_size, c.kv_heads, c.head_width,
                  exact::cuda::column_blocks(c.head_width)};
  inputs.query = device.query;
  inputs.out = device.out;
  inputs.query_heads = c.query_heads;
  inputs.query_stride = inputs.out_stride = c.query_heads * c.head_width;
  const size_t elements = pages * static_cast<size_t>(inputs.pages.page_elements());
  bytes = 2.0 * static_cast<double>(elements);
  const size_t layers = std::min(kPoolElements / elements, kOtherThanCached / elements + 2);
  if (layers == 0) std::exit(3);
  return time_graph(device.stream, 24, [&](int i) {
    inputs.pages.layer = device.pool + static_cast<size_t>(i) % layers * elements;
    check(exact::cuda::launch_decode_attention(inputs, form, device.multiprocessors, device.scratch,
                                               device.scratch_bytes, device.stream));
  });
}

}  // namespace

// With two arguments only the cases of that batch and that context: for a profiler.
int main(int argc, char** argv) {
  const int only_batch = argc == 3 ? std::atoi(argv[1]) : 0;
  const int only_context = argc == 3 ? std::atoi(argv[2]) : 0;
  cudaDeviceProp properties{};
  if (!exact::bench::has_hopper("bench_decode_attention", properties)) return 0;
  Device device;
  device.multiprocessors = properties.multiProcessorCount;
  device.scratch_bytes = exact::cuda::decode_attention_scratch(256, 64, 131072);
  check(cudaStreamCreate(&device.stream), "stream");
  check(cudaMalloc(&device.pool, kPoolElements * 2), "2 GiB of pages");
  check(cudaMalloc(&device.query, 256 * 8192 * 2), "query");
  check(cudaMalloc(&device.out, 256 * 8192 * 2), "out");
  check(cudaMalloc(&device.sequences, 256 * sizeof(exact::cuda::DeviceSequence)), "sequences");
  check(cudaMalloc(&device.pages, size_t{1} << 20), "page tables");
  check(cudaMalloc(&device.scratch, device.scratch_bytes), "scratch");
  exact::bench::fill_bf16<<<1024, 256>>>(device.pool, kPoolElements);
  exact::bench::fill_bf16<<<64, 256>>>(device.query, 256 * 8192);
  check(cudaDeviceSynchronize(), "fill");

  const double copy_tbps = exact::bench::copy_rate_tbps(device.stream, device.pool, kPoolElements,
                                                        device.multiprocessors);
  std::printf("%s, copy %.2f TB/s (read and written)\n", properties.name, copy_tbps);
  std::printf("%5s %7s %7s %9s %5s %12s %10s %8s %8s\n", "batch", "context", "longest", "H/G x E",
              "page", "streamed us", "spread us", "auto us", "of copy");
  std::string json;
  const Case cases[] = {
      {64, 2048, 32, 8, 128, 16, 0},  {64, 2048, 32, 8, 128, 64, 0},
      {64, 2048, 32, 8, 128, 128, 0}, {64, 2048, 16, 8, 128, 64, 0},
      {64, 2048, 32, 8, 64, 64, 0},   {64, 2048, 64, 8, 128, 64, 0},
      {64, 2048, 16, 1, 128, 64, 0},  {32, 2048, 32, 8, 128, 64, 0},
      {16, 2048, 32, 8, 128, 64, 0},  {8, 2048, 32, 8, 128, 64, 0},
      {4, 2048, 32, 8, 128, 64, 0},   {1, 2048, 32, 8, 128, 64, 0},
      {128, 1024, 32, 8, 128, 64, 0}, {64, 512, 32, 8, 128, 64, 0},
      {64, 128, 32, 8, 128, 64, 0},   {1, 128, 32, 8, 128, 64, 0},
      {1, 512, 32, 8, 128, 64, 0},    {16, 8192, 32, 8, 128, 64, 0},
      {8, 8192, 32, 8, 128, 64, 0},   {4, 8192, 32, 8, 128, 64, 0},
      {2, 8192, 32, 8, 128, 64, 0},   {1, 8192, 32, 8, 128, 64, 0},
      {1, 32768, 32, 8, 128, 16, 0},  {1, 32768, 32, 8, 128, 64, 0},
      {4, 32768, 32, 8, 128, 64, 0},  {1, 32768, 16, 8, 128, 64, 0},
      {1, 32768, 32, 8, 64, 64, 0},   {1, 32768, 64, 4, 128, 64, 0},
      {16, 4096, 12, 2, 128, 64, 0},  {64, 1024, 32, 8, 128, 64, 16384},
  };
  for (const Case& c : cases) {
    if (only_batch != 0 && (c.batch != only_batch || c.context != only_context)) continue;
    double bytes = 0;
    const double streamed = measure(device, c, DecodeAttentionForm::streamed, bytes);
    const double spread = measure(device, c, DecodeAttentionForm::spread, bytes);
    const double chosen = measure(device, c, DecodeAttentionForm::automatic, bytes);
    const double share = bytes / chosen * 1e-6 / copy_tbps;
    char heads[32];
    std::snprintf(heads, sizeof heads, "%d/%dx%d", c.query_heads, c.kv_heads, c.head_width);
    std::printf("%5d %7d %7d %9s %5d %12.2f %10.2f %8.2f %7.0f%%\n", c.batch, c.context, c.longest,
                heads, c.page_size, streamed, spread, chosen, 100 * share);
    char line[256];
    std::snprintf(line, sizeof line,
                  "%s{\"batch\": %d, \"context\": %d, \"longest\": %d, \"heads\": \"%s\", "
                  "\"page\": %d, \"streamed_us\": %.2f, \"spread_us\": %.2f, \"auto_us\": %.2f}",
                  json.empty() ? "" : ", ", c.batch, c.context, c.longest, heads, c.page_size,
                  streamed, spread, chosen);
    json += line;
  }
  std::printf(
      "{\"bench\": \"decode_attention\", \"device\": \"%s\", \"copy_tbps\": %.3f, \"rows\": "
      "[%s]}\n",
      properties.name, copy_tbps, json.c_str());
  return 0;
}
