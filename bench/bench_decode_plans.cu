// bench_decode_plans: every plan of decode_matmul for the shapes of a decode step, the fastest
// first, beside cuBLASLt without split K as LtMatmul chooses it: what plan_decode_matmul and the
// dispatch above it are made from. Microseconds, median of 3 replays of a graph of 12 or 32
// launches over weights that rotate through 2 GiB. One JSON line a plan goes to the file named on
// the command line.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/graph_timer.cuh"
#include "kernels/cuda/decode_matmul.h"
#include "kernels/cuda/matmul.h"

namespace {

using exact::bench::check;
using exact::cuda::DecodeMatmulPlan;

constexpr size_t kPoolElements = size_t{1} << 30;
constexpr int kRuns = 3;
constexpr int kBlockK = 64;
constexpr int kRowBytes = 128;
constexpr int kShown = 6;

struct Timed {
  DecodeMatmulPlan plan;
  double us = 0;
};

// Ring sizes that let one, two or three blocks share a multiprocessor.
constexpr int kSharedBytes[] = {222 * 1024, 110 * 1024, 72 * 1024};

void add_warp_plans(int tokens, int64_t n, int64_t k, int multiprocessors,
                    std::vector<DecodeMatmulPlan>& plans) {
  const auto base = exact::cuda::plan_decode_matmul(tokens, n, k, multiprocessors);
  if (!base) return;
  DecodeMatmulPlan plan = *base;
  plan.form = DecodeMatmulPlan::Form::warp;
  plan.x_stages = plan.x_stage_blocks = 0;
  plan.token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8;
  plan.cluster = 1;
  for (const int rows : {16, 32, 48, 64, 80, 96, 128, 160, 192}) {
    for (const int stage_blocks : {1, 2, 4, 8}) {
      for (const int shared_bytes : kSharedBytes) {
        const int stage_bytes = stage_blocks * (rows + plan.token_tiles * 8) * kRowBytes;
        plan.rows = rows;
        plan.stage_blocks = stage_blocks;
        plan.stages = std::min({32, (shared_bytes - 2048) / stage_bytes,
                                static_cast<int>(k / kBlockK / stage_blocks) + 1});
        if (plan.stages < 2) continue;
        for (const int begin_next : {0, 1 << 20}) {
          plan.begin_next = begin_next;
          plan.size_for(multiprocessors);
          plans.push_back(plan);
        }
      }
    }
  }
}

void add_warpgroup_plans(int tokens, int64_t n, int64_t k, int multiprocessors,
                         std::vector<DecodeMatmulPlan>& plans) {
  DecodeMatmulPlan plan;
  plan.form = DecodeMatmulPlan::Form::warpgroup;
  plan.tokens = tokens;
  plan.out_features = n;
  plan.in_features = k;
  plan.token_tiles = (tokens + 7) / 8;
  for (const int rows : {8, 16, 24, 32, 40, 48, 56, 64, 96, 128, 192, 256}) {
    if (n / rows > 16 * multiprocessors) continue;
    for (const int stage_blocks : {1, 2, 4, 8}) {
      for (const int shared_bytes : kSharedBytes) {
        for (const int cluster : {1, 2, 4}) {
          for (const int x_stage_blocks : {2, 8}) {
            const int x_stage_bytes = x_stage_blocks * plan.token_tiles * 8 * kRowBytes;
            const int stage_bytes = stage_blocks * rows * kRowBytes;
            const int x_bytes = std::max(2 * x_stage_bytes, shared_bytes / 4);
            plan.rows = rows;
            plan.stage_blocks = stage_blocks;
            plan.cluster = cluster;
            plan.x_stage_blocks = x_stage_blocks;
            plan.x_stages = std::min(32, x_bytes / x_stage_bytes);
            plan.stages =
                std::min({32, (shared_bytes - 2048 - plan.x_stages * x_stage_bytes) / stage_bytes,
                          static_cast<int>(k / kBlockK / stage_blocks) + 1});
            if (plan.stages < 3) continue;
            plan.begin_next = 0;
            plan.size_for(multiprocessors);
            plans.push_back(plan);
          }
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp device{};
  if (!exact::bench::has_hopper("bench_decode_plans", device)) return 0;
  std::FILE* const all = argc > 1 ? std::fopen(argv[1], "w") : nullptr;
  uint16_t *pool = nullptr, *x = nullptr, *out = nullptr;
  check(cudaMalloc(&pool, kPoolElements * 2), "2 GiB of weights");
  check(cudaMalloc(&x, 64 * 16384 * 2), "x");
  check(cudaMalloc(&out, size_t{64} * 160000 * 2), "out");
  exact::bench::fill_bf16<<<1024, 256>>>(pool, kPoolElements);
  exact::bench::fill_bf16<<<64, 256>>>(x, 64 * 16384);
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  const int multiprocessors = device.multiProcessorCount;
  auto library = exact::cuda::LtMatmul::create(multiprocessors);
  check(library.status());
  struct {
    int64_t n, k;
  } const shapes[] = {{2048, 2048}, {4096, 4096}, {6144, 4096}, {4096, 12288}, {24576, 4096}};
  for (const auto& shape : shapes) {
    const auto elements = static_cast<size_t>(shape.n * shape.k);
    const auto copies = std::min<size_t>(kPoolElements / elements, 64);
    const int launches = elements > size_t{1} << 26 ? 12 : 32;
    const auto weight = [&](int i) { return pool + static_cast<size_t>(i) % copies * elements; };
    for (const int tokens : {1, 16, 32, 64}) {
      std::vector<DecodeMatmulPlan> plans;
      add_warp_plans(tokens, shape.n, shape.k, multiprocessors, plans);
      add_warpgroup_plans(tokens, shape.n, shape.k, multiprocessors, plans);
      std::vector<Timed> timed;
      for (const DecodeMatmulPlan& plan : plans) {
        const auto launch = [&](int i) {
          return exact::cuda::launch_decode_matmul(plan, weight(i), x, shape.k, nullptr, out,
                                                   shape.n, stream);
        };
        if (!launch(0).is_ok()) {
          (void)cudaGetLastError();
          continue;  // more shared memory than there is
        }
        const double us = exact::bench::time_graph(
            stream, launches, [&](int i) { check(launch(i)); }, kRuns);
        timed.push_back({plan, us});
        if (all != nullptr) {
          std::fprintf(all, "{\"us\": %.2f, \"m\": %d, \"plan\": \"%s\"}\n", us, tokens,
                       plan.to_string().c_str());
        }
      }
      exact::cuda::MatmulInputs inputs{.x = x,
                                       .x_stride = shape.k,
                                       .weight = pool,
                                       .bias = nullptr,
                                       .out = out,
                                       .out_stride = shape.n,
                                       .tokens = tokens,
                                       .out_features = shape.n,
                                       .in_features = shape.k};
      check((*library)->prepare(inputs, stream));
      const double library_us = exact::bench::time_graph(
          stream, launches,
          [&](int i) {
            inputs.weight = weight(i);
            check((*library)->launch(inputs, stream));
          },
          kRuns);
      std::sort(timed.begin(), timed.end(),
                [](const Timed& a, const Timed& b) { return a.us < b.us; });
      std::printf("(%d, %d) %d tokens: %zu plans, cuBLASLt %.2f us\n", static_cast<int>(shape.n),
                  static_cast<int>(shape.k), tokens, timed.size(), library_us);
      for (size_t i = 0; i < std::min<size_t>(kShown, timed.size()); i++) {
        std::printf("  %8.2f us  %s\n", timed[i].us, timed[i].plan.to_string().c_str());
      }
      std::fflush(stdout);
    }
  }
  if (all != nullptr) std::fclose(all);
  return 0;
}
