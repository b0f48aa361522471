// bench_decode measures decoding on the CPU backend: tokens a second with 32 sequences in the
// batch, on a hash-initialised model shaped like a small Qwen3, and where the time goes. The chain
// kernels' share says how much is left to win beside them. The chain's rate stands beside the
// core's own.
//
//   bench_decode [--isa auto|avx512|avx2|scalar] [--threads N] [--batch N] [--prompt N] [--steps N]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bench/host_limits.h"
#include "engine/engine.h"
#include "engine/hash_model.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kSeed = 1;

struct Options {
  CpuIsa isa = best_cpu_isa();
  int threads = 1;
  int batch = 32;
  int prompt = 64;
  int steps = 24;
};

[[noreturn]] void fail(const std::string& message) {
  fmt::print(stderr, "bench_decode: {}\n", message);
  std::exit(2);
}

void require(const Status& status) {
  if (!status.is_ok()) fail(status.to_string());
}

// Qwen3-0.6B with fewer layers and a smaller vocabulary.
ModelConfig model_config() {
  ModelConfig config;
  config.type = ModelType::qwen3;
  config.width = 1024;
  config.layers = 4;
  config.query_heads = 16;
  config.kv_heads = 8;
  config.head_width = 128;
  config.feed_forward_width = 3072;
  config.vocabulary = 32768;
  config.max_positions = 4096;
  config.norm_epsilon = 1e-6f;
  config.tied_embeddings = true;
  config.head_norm = true;
  config.rope.head_width = config.head_width;
  config.rope.theta = 1e6;
  return config;
}

// Multiply-adds of one token's linear layers.
double linear_work(const ModelConfig& config) {
  double work = 0;
  for (const TensorSpec& spec : tensor_table(config)) {
    if (!spec.is_vector) work += static_cast<double>(spec.rows * spec.columns);
  }
  return work;  // tied: the embedding is the head
}

std::unique_ptr<WeightSlot> make_weights(const ModelConfig& config, Backend& backend) {
  auto slot = std::make_unique<WeightSlot>(config, backend);
  slot->begin();
  for (size_t i = 0; i < slot->table().size(); i++) {
    const TensorSpec& spec = slot->table()[i];
    std::vector<uint16_t> values(static_cast<size_t>(spec.rows * spec.columns));
    hash_tensor(spec, config, kSeed, values);
    require(slot->append(i, std::as_bytes(std::span(values))));
  }
  require(slot->complete());
  return slot;
}

std::unique_ptr<Engine> make_engine(const ModelConfig& config, Backend& backend,
                                    const Options& options) {
  EngineLimits limits;
  limits.max_context = options.prompt + options.steps + 64;
  limits.page_size = 32;
  limits.page_count = options.batch * (limits.max_context / limits.page_size + 2);
  limits.max_step_tokens = std::max(256, options.batch);
  limits.max_running = options.batch;
  auto engine = Engine::create(config, backend, make_weights(config, backend), limits);
  if (!engine.is_ok()) fail(engine.status().to_string());
  return std::move(engine).value();
}

void submit_batch(Engine& engine, const Options& options) {
  for (int i = 0; i < options.batch; i++) {
    GenerateRequest request;
    request.id = RequestId{static_cast<uint64_t>(i + 1)};
    for (int t = 0; t < options.prompt; t++) {
      request.prompt.push_back((i * 7919 + t * 104729) % engine.config().vocabulary);
    }
    request.max_new_tokens = options.steps + 32;
    request.sampling.seed = static_cast<uint64_t>(i);
    require(engine.submit(std::move(request)));
  }
}

struct Measured {
  std::vector<double> seconds;  // of each step with the whole batch decoding
  CpuProfile profile;           // of those steps
};

Measured measure(Engine& engine, const Options& options, CpuProfile& profile) {
  Measured measured;
  while (engine.has_work() && static_cast<int>(measured.seconds.size()) < options.steps) {
    const CpuProfile before = profile;
    const auto start = Clock::now();
    const auto report = engine.step();
    if (!report.is_ok()) fail(report.status().to_string());
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (report->decode_rows != options.batch || report->prefill_rows != 0) continue;
    measured.seconds.push_back(seconds);
    for (const auto entry :
         {&CpuProfile::total, &CpuProfile::linear, &CpuProfile::attention, &CpuProfile::norm_rope,
          &CpuProfile::pointwise, &CpuProfile::logits, &CpuProfile::copies, &CpuProfile::chain}) {
      measured.profile.*entry += profile.*entry - before.*entry;
    }
  }
  if (measured.seconds.empty()) fail("the whole batch never decoded: lower --batch");
  return measured;
}

Options parse(int argc, char** argv) {
  Options options;
  const std::vector<std::string> args(argv + 1, argv + argc);
  for (size_t i = 0; i < args.size(); i += 2) {
    if (i + 1 >= args.size()) fail("an option wants a value: " + args[i]);
    const int number = std::atoi(args[i + 1].c_str());
    if (args[i] == "--isa") {
      const auto isa = cpu_isa_from_name(args[i + 1]);
      if (!isa.is_ok()) fail(isa.status().message());
      options.isa = *isa;
    } else if (args[i] == "--threads" && number >= 0) {
      options.threads = number;
    } else if (args[i] == "--batch" && number > 0) {
      options.batch = number;
    } else if (args[i] == "--prompt" && number > 0) {
      options.prompt = number;
    } else if (args[i] == "--steps" && number > 0) {
      options.steps = number;
    } else {
      fail("usage: bench_decode [--isa NAME] [--threads N] [--batch N] [--prompt N] [--steps N]");
    }
  }
  return options;
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const ModelConfig config = model_config();
  CpuProfile profile;
  auto backend = make_cpu_backend({options.isa, options.threads, &profile});
  if (!backend.is_ok()) fail(backend.status().to_string());
  auto engine = make_engine(config, **backend, options);
  submit_batch(*engine, options);
  Measured measured = measure(*engine, options, profile);

  std::sort(measured.seconds.begin(), measured.seconds.end());
  double wall = 0;
  for (const double seconds : measured.seconds) wall += seconds;
  const auto at = [&](size_t tenth) {
    return options.batch / measured.seconds[(measured.seconds.size() - 1) * tenth / 10];
  };
  const CpuProfile& p = measured.profile;
  const double steps = static_cast<double>(measured.seconds.size());
  const double chain_rate = linear_work(config) * options.batch * steps / p.linear;
  const double peak = peak_fma_per_second(options.isa) * (*backend)->threads();
  fmt::print("{}, {} threads, {}: batch {}, prompt {}, {} steps\n", (*backend)->name(),
             (*backend)->threads(), cpu_model_name(), options.batch, options.prompt,
             measured.seconds.size());
  fmt::print("  tokens/s {:.1f} (10 % .. 90 %: {:.1f} .. {:.1f})\n", at(5), at(9), at(1));
  fmt::print("  linear layers {:.2f} GMAC/s, {:.1f}% of {:.1f} G fma/s from registers\n",
             chain_rate * 1e-9, 100 * chain_rate / peak, peak * 1e-9);
  const auto share = [&](const char* name, double seconds) {
    fmt::print("  {:<28} {:>6.2f}%\n", name, 100 * seconds / wall);
  };
  share("chain kernels", p.chain);
  share("linear, chain included", p.linear);
  share("attention, chain included", p.attention);
  share("norms and rotation", p.norm_rope);
  share("pointwise", p.pointwise);
  share("log-probabilities and draws", p.logits);
  share("copies", p.copies);
  share("outside the backend", wall - p.total);
  fmt::print(
      "{{\"bench\":\"decode\",\"commit\":\"{}\",\"device\":\"{}\",\"contract\":\"{}\","
      "\"backend\":\"{}\",\"threads\":{},\"batch\":{},\"tokens_per_s\":{:.2f},\"low\":{:.2f},"
      "\"high\":{:.2f},\"chain_share\":{:.4f},\"linear_gmac_per_s\":{:.3f}}}\n",
      EXACT_COMMIT, cpu_model_name(), contract_id(config).to_hex(), (*backend)->name(),
      (*backend)->threads(), options.batch, at(5), at(9), at(1), p.chain / wall, chain_rate * 1e-9);
  return 0;
}

}  // namespace
}  // namespace exact::bench

int main(int argc, char** argv) {
  return exact::bench::run(argc, argv);
}
