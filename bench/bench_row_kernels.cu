// bench_row_kernels: norms, rotations, silu, log-probabilities and draws, beside the copy bandwidth
// of the same run. Decode shapes (64 rows) show the time of a launch among others, their data in
// the L2 as the kernel before leaves it; prefill shapes (8,192 rows) move more than the L2 holds.
// Launches are replayed from a CUDA graph; median of 9 runs in microseconds; a JSON line at the
// end.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "bench/graph_timer.cuh"
#include "kernels/cuda/logits_plan.h"
#include "kernels/cuda/row_kernels.h"

namespace {

using exact::NormForm;
using exact::SampleOutcome;
using exact::SampleRow;
using exact::Status;
using exact::bench::check;

cudaStream_t stream;

// bf16 of about N(0, spread): a sum of hashed uniforms.
__global__ void fill(uint16_t* data, size_t size, float spread) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < size;
       i += size_t{gridDim.x} * blockDim.x) {
    float sum = -2.0f;
    auto hash = static_cast<uint32_t>(i * 2654435761u) ^ 0x9e3779b9u;
    for (int k = 0; k < 4; k++) {
      hash = (hash ^ hash >> 15) * 0x2c1b3c6du;
      hash = (hash ^ hash >> 12) * 0x297a2d39u;
      sum += static_cast<float>(hash >> 8) * 0x1p-24f;
    }
    data[i] = exact::float_to_bf16(sum * 1.7f * spread);
  }
}

double copy_tbps = 0;
std::string json;

double time_graph(int count, const std::function<void()>& launch) {
  return exact::bench::time_graph(stream, count, [&](int) { launch(); });
}

void report(const std::string& name, double us, double bytes) {
  const double tbps = bytes / us * 1e-6;
  std::printf("%-52s %9.2f us %7.2f TB/s %5.0f%%\n", name.c_str(), us, tbps,
              100 * tbps / copy_tbps);
  json += (json.empty() ? "" : ", ") + std::string("{\"name\": \"") + name +
          "\", \"us\": " + std::to_string(us) + ", \"tbps\": " + std::to_string(tbps) + "}";
}

template <class T>
T* take(size_t count) {
  void* data = nullptr;
  check(cudaMalloc(&data, count * sizeof(T)), "memory");
  check(cudaMemset(data, 0, count * sizeof(T)), "memory");
  return static_cast<T*>(data);
}

constexpr int64_t kWidth = 4096, kForward = 12288;
constexpr int kQueryHeads = 32, kKvHeads = 8, kHead = 128;
constexpr int64_t kQkv = (kQueryHeads + 2 * kKvHeads) * kHead;
constexpr int64_t kMostRows = 8192;

void bench_rows(uint16_t* a, uint16_t* b, uint16_t* c, int64_t rows) {
  const std::string of = ", " + std::to_string(rows) + " rows";
  const int count = rows > 512 ? 10 : 200;
  uint16_t* const weight = c;
  const double row_bytes = 2.0 * static_cast<double>(rows);
  const exact::cuda::Rows x{a, kWidth}, out{b + kMostRows * kWidth, kWidth};
  const exact::cuda::ConstRows y{b, kWidth};
  for (const NormForm form : {NormForm::hf, NormForm::fused}) {
    const std::string name = form == NormForm::hf ? " hf" : " fused";
    report("rms_norm 4096" + name + of,
           time_graph(count,
                      [&] {
                        check(exact::cuda::launch_rms_norm({a, kWidth}, weight, 1e-6f, form, out,
                                                           rows, kWidth, stream));
                      }),
           2 * kWidth * row_bytes);
  }
  report("add_rms_norm 4096 hf" + of,
         time_graph(count,
                    [&] {
                      check(exact::cuda::launch_add_rms_norm(x, y, weight, 1e-6f, NormForm::hf, out,
                                                             rows, kWidth, stream));
                    }),
         4 * kWidth * row_bytes);
  report("add 4096" + of,
         time_graph(count, [&] { check(exact::cuda::launch_add(x, y, rows, kWidth, stream)); }),
         3 * kWidth * row_bytes);
  report("silu_mul 12288" + of,
         time_graph(count,
                    [&] {
                      check(exact::cuda::launch_silu_mul({a, 2 * kForward},
                                                         {a + kForward, 2 * kForward},
                                                         {b, kForward}, rows, kForward, stream));
                    }),
         3 * kForward * row_bytes);
}

void bench_heads(uint16_t* qkv, uint16_t* cache, uint16_t* table, int64_t rows) {
  std::vector<int32_t> positions, row_sequence, pages;
  std::vector<exact::cuda::DeviceSequence> sequences;
  const int64_t length = rows > 512 ? 1024 : 1;  // of a sequence's rows in the step
  for (int64_t s = 0; s < rows / length; s++) {
    const auto first = static_cast<int32_t>(length == 1 ? 500 + s : 0);
    sequences.push_back({static_cast<int32_t>(s * length), static_cast<int32_t>(length), first,
                         static_cast<int32_t>(pages.size())});
    for (int p = 0; p < 16; p++) pages.push_back(static_cast<int32_t>(s * 16 + p));
    for (int64_t i = 0; i < length; i++) {
      positions.push_back(first + static_cast<int32_t>(i));
      row_sequence.push_back(static_cast<int32_t>(s));
    }
  }
  const auto upload = [](const auto& host) {
    using T = std::remove_cvref_t<decltype(host[0])>;
    T* const data = take<T>(host.size());
    check(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
    return data;
  };
  exact::cuda::DeviceStep step;
  step.rows = static_cast<int32_t>(rows);
  step.positions = upload(positions);
  step.row_sequence = upload(row_sequence);
  step.sequences = upload(sequences);
  step.pages = upload(pages);
  const exact::cuda::LayerPages layer{cache, 64, kKvHeads, kHead,
                                      exact::cuda::column_blocks(kHead)};
  for (const bool norm : {false, true}) {
    exact::cuda::RopeInputs rope{table, norm ? table : nullptr, norm ? table : nullptr, 1e-6f,
                                 NormForm::hf};
    report(std::string("rope_store_kv 32+8 heads of 128") + (norm ? ", norms" : "") + ", " +
               std::to_string(rows) + " rows",
           time_graph(rows > 512 ? 10 : 200,
                      [&] {
                        check(exact::cuda::launch_rope_store_kv(
                            {qkv, kQkv}, kQueryHeads, {qkv + kQueryHeads * kHead, kQkv},
                            {qkv + (kQueryHeads + kKvHeads) * kHead, kQkv}, rope, layer, step,
                            stream));
                      }),
           2.0 * kQkv * 2 * static_cast<double>(rows));
  }
}

void bench_logits(uint16_t* logits, int64_t vocabulary) {
  auto* const targets = take<int32_t>(8192);
  auto* const out = take<float>(8192);
  auto* const outcomes = take<SampleOutcome>(512);
  auto* const sample_rows = take<SampleRow>(512);
  for (const int64_t rows : {1, 8, 16, 32, 64, 128, 256, 2048}) {
    const double bytes = 2.0 * static_cast<double>(rows * vocabulary);
    for (const int cluster : {0, 1, 2, 4, 8}) {
      const auto plan = exact::cuda::plan_target_logprobs(vocabulary, rows, cluster);
      const std::string of = ", " + std::to_string(rows) + " x " + std::to_string(vocabulary) +
                             (cluster == 0 ? "" : ", cluster " + std::to_string(plan->cluster));
      report("target_logprobs" + of,
             time_graph(rows > 512 ? 4 : 20,
                        [&] {
                          check(exact::cuda::launch_target_logprobs(*plan, logits, targets, out,
                                                                    stream));
                        }),
             bytes);
      if (rows > 256) continue;
      const struct {
        const char* name;
        float temperature;
        int top_k;
        float top_p, min_p;
      } cases[] = {
          {"greedy", 0.0f, 0, 1.0f, 0.0f},          {"T 1", 1.0f, 0, 1.0f, 0.0f},
          {"T 0.7", 0.7f, 0, 1.0f, 0.0f},           {"T 0.7, k 50", 0.7f, 50, 1.0f, 0.0f},
          {"T 1, p 0.95", 1.0f, 0, 0.95f, 0.0f},    {"T 0.7, k 50, p 0.9", 0.7f, 50, 0.9f, 0.0f},
          {"T 1, min-p 0.05", 1.0f, 0, 1.0f, 0.05f}};
      for (const auto& c : cases) {
        const bool filters = c.top_k > 0 || c.top_p < 1.0f || c.min_p > 0.0f;
        std::vector<SampleRow> host;
        for (int64_t r = 0; r < rows; r++) {
          host.push_back(
              {r, static_cast<uint64_t>(r), 0, 9, c.temperature, c.top_k, c.top_p, c.min_p});
        }
        check(cudaMemcpy(sample_rows, host.data(), host.size() * sizeof(SampleRow),
                         cudaMemcpyHostToDevice),
              "copy");
        const auto sample_plan = exact::cuda::plan_sample(vocabulary, rows, filters, cluster);
        report(std::string("sample ") + c.name + of,
               time_graph(20,
                          [&] {
                            check(exact::cuda::launch_sample(*sample_plan, logits, sample_rows,
                                                             filters, outcomes, stream));
                          }),
               bytes);
      }
    }
  }
}

}  // namespace

int main() {
  cudaDeviceProp device{};
  if (!exact::bench::has_hopper("bench_row_kernels", device)) return 0;
  check(cudaStreamCreate(&stream), "stream");
  constexpr size_t kElements = size_t{2048} * 151936;
  auto* const a = take<uint16_t>(kElements);
  auto* const b = take<uint16_t>(kElements);
  fill<<<1024, 256>>>(a, kElements, 2.5f);
  fill<<<1024, 256>>>(b, kElements, 1.0f);
  copy_tbps = exact::bench::copy_rate_tbps(stream, a, kElements, device.multiProcessorCount);
  std::printf("%s, copy %.2f TB/s (read and written)\n", device.name, copy_tbps);
  for (const int64_t rows : {int64_t{1}, int64_t{64}, kMostRows}) {
    auto* const weights = take<uint16_t>(kMostRows * 4);
    bench_rows(a, b, weights, rows);
    bench_heads(a, b, take<uint16_t>(2048 * 2 * kHead), rows);
  }
  fill<<<1024, 256>>>(a, kElements, 2.5f);
  bench_logits(a, 151936);
  std::printf(
      "{\"bench\": \"row_kernels\", \"device\": \"%s\", \"copy_tbps\": %.3f, \"rows\": [%s]}\n",
      device.name, copy_tbps, json.c_str());
  return 0;
}
