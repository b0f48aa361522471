// bench_scheduler measures what the engine itself does in a step of decoding sequences: planning,
// pages, gathering rows, applying tokens; on a backend that computes nothing. Beside it stands the
// time that a GPU takes to stream the weights of an 8B model once, which a step has to hide behind.
//
//   bench_scheduler [--running N] [--steps N]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bench/host_limits.h"
#include "bench/idle_backend.h"
#include "engine/engine.h"
#include "engine/scheduler.h"

namespace {
uint64_t allocations = 0;
}  // namespace

void* operator new(std::size_t bytes) {
  allocations++;
  void* memory = std::malloc(bytes > 0 ? bytes : 1);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace exact::bench {
namespace {

using Clock = IdleBackend::Clock;

constexpr double kWeightsMicroseconds = 16e9 / 4.8e12 * 1e6;  // 8B in bf16 at an H200's 4.8 TB/s
constexpr int kPrompt = 64;
constexpr int kPageSize = 16;
constexpr int kSpare = 1000;  // tokens that none of the measured steps reaches

[[noreturn]] void fail(const std::string& message) {
  fmt::print(stderr, "bench_scheduler: {}\n", message);
  std::exit(2);
}

ModelConfig model_config() {
  ModelConfig config;
  config.width = 32;
  config.layers = 1;
  config.query_heads = 1;
  config.kv_heads = 1;
  config.head_width = 32;
  config.feed_forward_width = 32;
  config.vocabulary = 32;
  config.max_positions = 8192;
  config.norm_epsilon = 1e-6f;
  config.tied_embeddings = true;
  config.rope.head_width = config.head_width;
  config.rope.theta = 1e4;
  return config;
}

std::unique_ptr<WeightSlot> make_weights(const ModelConfig& config, Backend& backend) {
  auto slot = std::make_unique<WeightSlot>(config, backend);
  slot->begin();
  for (size_t i = 0; i < slot->table().size(); i++) {
    const TensorSpec& spec = slot->table()[i];
    const std::vector<std::byte> zeros(static_cast<size_t>(spec.rows * spec.columns) * 2);
    if (!slot->append(i, zeros).is_ok()) fail("weights do not fit");
  }
  if (!slot->complete().is_ok()) fail("weights are not complete");
  return slot;
}

double microseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

double median(std::vector<double>& values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

struct Measured {
  std::vector<double> whole, before, within, after;  // microseconds of each step
  uint64_t allocations = 0;
};

Measured measure(int running, int steps) {
  const ModelConfig config = model_config();
  IdleBackend backend;
  EngineLimits limits;
  limits.max_context = kPrompt + steps + kSpare;
  limits.page_size = kPageSize;
  limits.page_count = running * (limits.max_context / kPageSize + 2);
  limits.max_step_tokens = running;
  limits.max_running = running;
  auto engine = Engine::create(config, backend, make_weights(config, backend), limits);
  if (!engine.is_ok()) fail(engine.status().to_string());
  for (int i = 0; i < running; i++) {
    GenerateRequest request;
    request.id = RequestId{static_cast<uint64_t>(i + 1)};
    for (int t = 0; t < kPrompt; t++) request.prompt.push_back((i * 7919 + t * 104729) % 32);
    request.max_new_tokens = steps + kSpare;
    request.sampling.seed = static_cast<uint64_t>(i);
    const Status status = (*engine)->submit(std::move(request));
    if (!status.is_ok()) fail(status.to_string());
  }
  Measured measured;
  for (auto* values : {&measured.whole, &measured.before, &measured.within, &measured.after}) {
    values->reserve(static_cast<size_t>(steps));
  }
  uint64_t allocations_before = 0;
  for (int warm = 0; static_cast<int>(measured.whole.size()) < steps;) {
    const auto start = Clock::now();
    const auto report = (*engine)->step();
    const auto end = Clock::now();
    if (!report.is_ok() || !(*engine)->has_work()) fail("the sequences ended early");
    if (report->decode_rows != running) continue;
    if (++warm <= 32) {
      allocations_before = allocations;
      continue;
    }
    measured.whole.push_back(microseconds(end - start));
    measured.before.push_back(microseconds(backend.begun - start));
    measured.within.push_back(microseconds(backend.finished - backend.begun));
    measured.after.push_back(microseconds(end - backend.finished));
  }
  measured.allocations = allocations - allocations_before;
  return measured;
}

// plan_step alone, on a state like the engine's.
double measure_plan(int running, int steps) {
  std::vector<std::vector<int32_t>> pages(static_cast<size_t>(running));
  std::vector<int32_t> holders;
  std::vector<SequenceState> states(static_cast<size_t>(running));
  for (int i = 0; i < running; i++) {
    const auto s = static_cast<size_t>(i);
    states[s].id = SequenceId{i};
    states[s].computed = kPrompt + i % kPageSize;
    states[s].known = states[s].computed + 1;
    for (int32_t p = 0; p < states[s].known / kPageSize + 1; p++) {
      pages[s].push_back(static_cast<int32_t>(holders.size()));
      holders.push_back(1);
    }
    states[s].pages = pages[s];
  }
  const SchedulerLimits limits{
      .max_step_tokens = running, .max_running = running, .page_size = kPageSize};
  StepPlan plan;
  std::vector<double> times;
  for (int i = 0; i < steps; i++) {
    const auto start = Clock::now();
    plan_step({states, {}, holders, running, 0}, limits, plan);
    times.push_back(microseconds(Clock::now() - start));
    if (static_cast<int>(plan.chunks.size()) != running) fail("a plan of other rows");
  }
  return median(times);
}

int run(int argc, char** argv) {
  int running = 1000, steps = 500;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const int number = std::atoi(argv[i + 1]);
    if (name == "--running" && number > 0 && number <= 1 << 16) {
      running = number;
    } else if (name == "--steps" && number > 0 && number <= 4000) {
      steps = number;
    } else {
      fail("usage: bench_scheduler [--running N] [--steps N]");
    }
  }
  Measured measured = measure(running, steps);
  const double whole = median(measured.whole), plan = measure_plan(running, steps);
  const auto share = [&](const char* name, double part) {
    fmt::print("  {:<36} {:>8.1f} us {:>5.1f}%\n", name, part, 100 * part / whole);
  };
  fmt::print("{}: {} decoding sequences, {} steps, pages of {}\n", cpu_model_name(), running, steps,
             kPageSize);
  fmt::print("  median {:.1f} us a step, slowest of 20: {:.1f}; weights of 8B stream in {:.0f}\n",
             whole, measured.whole[measured.whole.size() * 19 / 20], kWeightsMicroseconds);
  share("plan, pages, gathering of rows", median(measured.before));
  share("of these, plan_step alone", plan);
  share("the model's calls to the backend", median(measured.within));
  share("applying tokens", median(measured.after));
  fmt::print("  allocations in {} steps: {}\n", steps, measured.allocations);
  fmt::print(
      "{{\"bench\":\"scheduler\",\"commit\":\"{}\",\"device\":\"{}\",\"running\":{},"
      "\"step_us\":{:.2f},\"plan_us\":{:.2f},\"allocations\":{}}}\n",
      EXACT_COMMIT, cpu_model_name(), running, whole, plan, measured.allocations);
  return 0;
}

}  // namespace
}  // namespace exact::bench

int main(int argc, char** argv) {
  return exact::bench::run(argc, argv);
}
