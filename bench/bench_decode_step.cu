// bench_decode_step: whole steps of decoding on a GPU, as the engine runs them - plan, recorded
// graph, logits, draws - on the shape of Qwen3-1.7B, beside the time in which the weights and the
// cache that a step reads cross the memory at the rate of a copy in the same run. Median of the
// steps in which the whole batch decodes; one JSON line at the end.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bench/graph_timer.cuh"
#include "engine/engine.h"
#include "kernels/make_backend.h"

namespace {

using exact::bench::check;
using Clock = std::chrono::steady_clock;

constexpr int kSteps = 48;
constexpr int kPrompt = 512;
constexpr size_t kPoolElements = size_t{1} << 29;

exact::ModelConfig model_config() {
  exact::ModelConfig config;
  config.type = exact::ModelType::qwen3;
  config.width = 2048;
  config.layers = 28;
  config.query_heads = 16;
  config.kv_heads = 8;
  config.head_width = 128;
  config.feed_forward_width = 6144;
  config.vocabulary = 151936;
  config.max_positions = 4096;
  config.norm_epsilon = 1e-6f;
  config.tied_embeddings = true;
  config.head_norm = true;
  config.rope.head_width = config.head_width;
  config.rope.theta = 1e6;
  return config;
}

// Timing asks for ordinary values, not for independent ones: a block of small ones, again and
// again; norms are 1.
std::unique_ptr<exact::WeightSlot> make_weights(const exact::ModelConfig& config,
                                                exact::Backend& backend, double& bytes) {
  constexpr uint16_t kOne = 0x3f80;
  std::vector<uint16_t> block(size_t{1} << 20);
  for (size_t i = 0; i < block.size(); i++) {
    const auto hash = static_cast<uint32_t>(i * 2654435761u);
    block[i] = static_cast<uint16_t>((hash & 0x80ffu) | 0x3c00u);
  }
  auto slot = std::make_unique<exact::WeightSlot>(config, backend);
  slot->begin();
  bytes = 0;
  std::vector<uint16_t> values;
  for (size_t i = 0; i < slot->table().size(); i++) {
    const exact::TensorSpec& spec = slot->table()[i];
    values.resize(static_cast<size_t>(spec.rows * spec.columns));
    for (size_t begin = 0; begin < values.size(); begin += block.size()) {
      const size_t count = std::min(block.size(), values.size() - begin);
      std::copy_n(block.begin(), count, values.begin() + static_cast<int64_t>(begin));
    }
    if (spec.is_vector) std::fill(values.begin(), values.end(), kOne);
    check(slot->append(i, std::as_bytes(std::span(values))));
    bytes += 2.0 * static_cast<double>(values.size());
  }
  check(slot->complete());
  return slot;
}

// Seconds of each step in which all of `batch` sequences decode.
std::vector<double> time_steps(exact::Engine& engine, int batch) {
  for (int i = 0; i < batch; i++) {
    exact::GenerateRequest request;
    request.id = exact::RequestId{static_cast<uint64_t>(i + 1)};
    for (int t = 0; t < kPrompt; t++) request.prompt.push_back((i * 7919 + t * 104729) % 150000);
    request.max_new_tokens = kSteps + 64;
    request.sampling.seed = static_cast<uint64_t>(i);
    check(engine.submit(std::move(request)));
  }
  std::vector<double> seconds;
  while (engine.has_work()) {
    const auto begin = Clock::now();
    const auto report = engine.step();
    check(report.status());
    const std::chrono::duration<double> took = Clock::now() - begin;
    if (report->decode_rows == batch && report->prefill_rows == 0) seconds.push_back(took.count());
    if (static_cast<int>(seconds.size()) < kSteps) continue;
    for (int i = 0; i < batch; i++) {
      (void)engine.cancel(exact::RequestId{static_cast<uint64_t>(i + 1)});
    }
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

}  // namespace

int main() {
  cudaDeviceProp device{};
  if (!exact::bench::has_hopper("bench_decode_step", device)) return 0;
  double copy_tbps = 0;
  {
    uint16_t* pool = nullptr;
    cudaStream_t stream;
    check(cudaStreamCreate(&stream), "stream");
    check(cudaMalloc(&pool, kPoolElements * 2), "1 GiB to copy");
    exact::bench::fill_bf16<<<1024, 256, 0, stream>>>(pool, kPoolElements);
    copy_tbps =
        exact::bench::copy_rate_tbps(stream, pool, kPoolElements, device.multiProcessorCount);
    cudaFree(pool);
    cudaStreamDestroy(stream);
  }
  const exact::ModelConfig config = model_config();
  auto backend = exact::make_backend({"cuda", {}, {}});
  check(backend.status());
  std::printf("%s, copy %.2f TB/s (read and written); Qwen3-1.7B shape, prompts of %d\n",
              device.name, copy_tbps, kPrompt);
  std::printf("%6s %10s %10s %12s %10s\n", "batch", "step us", "floor us", "tokens/s", "of floor");
  std::string json;
  for (const int batch : {1, 8, 32, 64, 128, 256}) {
    exact::EngineLimits limits;
    limits.max_context = kPrompt + kSteps + 128;
    limits.page_count = batch * (limits.max_context / limits.page_size + 2);
    limits.max_step_tokens = 2048;
    limits.max_running = batch;
    double weight_bytes = 0;
    auto weights = make_weights(config, **backend, weight_bytes);
    auto engine = exact::Engine::create(config, **backend, std::move(weights), limits);
    check(engine.status());
    const std::vector<double> seconds = time_steps(**engine, batch);
    if (seconds.empty()) return 3;
    const double us = 1e6 * seconds[seconds.size() / 2];
    const double cache_bytes =
        4.0 * batch * (kPrompt + kSteps / 2) * config.layers * config.kv_heads * config.head_width;
    const double floor_us = (weight_bytes + cache_bytes) / copy_tbps * 1e-6;
    std::printf("%6d %10.1f %10.1f %12.0f %9.0f%%\n", batch, us, floor_us, batch * 1e6 / us,
                100 * us / floor_us);
    std::fflush(stdout);
    json += (json.empty() ? "" : ", ") + std::string("{\"batch\": ") + std::to_string(batch) +
            ", \"step_us\": " + std::to_string(us) + ", \"floor_us\": " + std::to_string(floor_us) +
            "}";
  }
  std::printf("{\"bench\": \"decode_step\", \"device\": \"%s\", \"rows\": [%s]}\n", device.name,
              json.c_str());
  return 0;
}
