// bench_matmul measures the CPU backend's linear layer (rule N1) on one core, for each instruction
// set: multiply-adds a second beside the core's own fp32 rate and memory bandwidth. Weights rotate
// through more memory than the caches hold. Times are the thread's CPU time.
//
//   bench_matmul [--isa auto|avx512|avx2|scalar] [--runs N] [--check]
//
// --check: exit code 1 below the project's floor at (64, 1536, 1536).
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "bench/host_limits.h"
#include "kernels/contract/contract_id.h"
#include "kernels/contract/hash_init.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact::bench {
namespace {

constexpr size_t kRotatedBytes = size_t{96} << 20;

struct Shape {
  int64_t rows, out_features, in_features;
};

constexpr Shape kShapes[] = {{64, 1536, 1536}, {1, 1536, 1536}, {8, 1536, 1536}, {32, 1536, 1536},
                             {32, 896, 4864},  {32, 4864, 896}, {1, 4096, 4096}, {256, 1536, 1536}};
constexpr Shape kCheckedShape = kShapes[0];

struct Options {
  std::vector<CpuIsa> isas;
  int runs = 15;
  bool check = false;
};

struct Figures {
  double median = 0, low = 0, high = 0;  // multiply-adds a second; low and high: the deciles
};

double floor_of(CpuIsa isa) {
  return isa == CpuIsa::avx512 ? 8e9 : isa == CpuIsa::avx2 ? 4e9 : 0.0;
}

std::vector<uint16_t> uniform(std::string_view name, uint64_t seed, int64_t count, double range) {
  const contract::HashStream stream(name, seed);
  std::vector<uint16_t> data(static_cast<size_t>(count));
  for (size_t i = 0; i < data.size(); i++) data[i] = stream.uniform_bf16(i, -range, range);
  return data;
}

[[noreturn]] void fail(const std::string& message) {
  fmt::print(stderr, "bench_matmul: {}\n", message);
  std::exit(2);
}

// Weights enough to fill kRotatedBytes.
std::vector<LinearWeight> make_weights(Backend& backend, const Shape& shape) {
  const int64_t elements = shape.out_features * shape.in_features;
  auto host = uniform("bench.w", 1, elements, 0.05);
  const size_t count = std::max<size_t>(2, kRotatedBytes / (static_cast<size_t>(elements) * 2));
  std::vector<LinearWeight> weights(count);
  for (LinearWeight& weight : weights) {
    const TensorView view(host.data(), DType::bf16, shape.out_features, shape.in_features);
    if (const Status status = backend.pack_whole(view, weight); !status.is_ok()) {
      fail(status.to_string());
    }
  }
  return weights;
}

Figures measure(Backend& backend, const Shape& shape, int runs) {
  auto weights = make_weights(backend, shape);
  auto x = uniform("bench.x", 1, shape.rows * shape.in_features, 2.0);
  std::vector<uint16_t> out(static_cast<size_t>(shape.rows * shape.out_features));
  const TensorView x_view(x.data(), DType::bf16, shape.rows, shape.in_features);
  const TensorView out_view(out.data(), DType::bf16, shape.rows, shape.out_features);
  const double work =
      static_cast<double>(shape.rows * shape.out_features) * static_cast<double>(shape.in_features);
  const bool slow = backend.name() == "cpu-scalar";
  const int calls = std::max(1, static_cast<int>((slow ? 3e7 : 3e8) / work));
  size_t next = 0;
  std::vector<double> rates;
  for (int run = -1; run < runs; run++) {  // the first one warms up
    const double start = thread_seconds();
    for (int call = 0; call < calls; call++) {
      backend.linear(x_view, weights[next++ % weights.size()], nullptr, out_view);
    }
    if (const Status status = backend.finish(); !status.is_ok()) fail(status.to_string());
    const double seconds = thread_seconds() - start;
    if (run >= 0) rates.push_back(work * calls / seconds);
  }
  std::sort(rates.begin(), rates.end());
  return {rates[rates.size() / 2], rates[rates.size() / 10], rates[rates.size() * 9 / 10]};
}

Options parse(int argc, char** argv) {
  Options options;
  const std::vector<std::string_view> args(argv + 1, argv + argc);
  for (size_t i = 0; i < args.size(); i++) {
    if (args[i] == "--check") {
      options.check = true;
    } else if (args[i] == "--runs" && i + 1 < args.size()) {
      options.runs = std::atoi(std::string(args[++i]).c_str());
    } else if (args[i] == "--isa" && i + 1 < args.size()) {
      const auto isa = cpu_isa_from_name(args[++i]);
      if (!isa.is_ok()) fail(isa.status().message());
      options.isas.push_back(*isa);
    } else {
      fail("usage: bench_matmul [--isa auto|avx512|avx2|scalar] [--runs N] [--check]");
    }
  }
  if (options.runs < 1 || options.runs > 1000) fail("--runs: say 1 to 1000");
  if (options.isas.empty()) options.isas = {CpuIsa::avx512, CpuIsa::avx2, CpuIsa::scalar};
  return options;
}

// Prints the instruction set's table; returns its JSON object. `good`: cleared below the floor.
std::string bench_isa(CpuIsa isa, const Options& options, double bandwidth, bool& good) {
  auto backend = make_cpu_backend({isa, 1});
  if (!backend.is_ok()) {
    fmt::print("{}: skipped: {}\n", cpu_isa_name(isa), backend.status().message());
    return {};
  }
  const double peak = peak_fma_per_second(isa);
  fmt::print("{}: fp32 fma from registers {:.1f} G/s\n", cpu_isa_name(isa), peak * 1e-9);
  fmt::print("  {:>5} {:>6} {:>6} {:>9} {:>17} {:>8} {:>9} {:>7}\n", "M", "N", "K", "GMAC/s",
             "10 % .. 90 %", "of fma", "GB/s", "of mem");
  std::string json;
  for (const Shape& shape : kShapes) {
    const Figures figures = measure(**backend, shape, options.runs);
    const double bytes = 2.0 * figures.median / static_cast<double>(shape.rows);
    fmt::print("  {:>5} {:>6} {:>6} {:>9.2f} {:>8.2f} {:>8.2f} {:>7.1f}% {:>9.2f} {:>6.1f}%\n",
               shape.rows, shape.out_features, shape.in_features, figures.median * 1e-9,
               figures.low * 1e-9, figures.high * 1e-9, 100 * figures.median / peak, bytes * 1e-9,
               100 * bytes / bandwidth);
    std::fflush(stdout);
    json += fmt::format(
        "{}{{\"m\":{},\"n\":{},\"k\":{},\"gmac_per_s\":{:.3f},\"low\":{:.3f},"
        "\"high\":{:.3f}}}",
        json.empty() ? "" : ",", shape.rows, shape.out_features, shape.in_features,
        figures.median * 1e-9, figures.low * 1e-9, figures.high * 1e-9);
    const bool checked = shape.rows == kCheckedShape.rows &&
                         shape.out_features == kCheckedShape.out_features &&
                         shape.in_features == kCheckedShape.in_features;
    if (checked && figures.median < floor_of(isa)) {
      good = false;
      fmt::print("  below the floor of {:.1f} GMAC/s\n", floor_of(isa) * 1e-9);
    }
  }
  return fmt::format("{{\"isa\":\"{}\",\"peak_gfma_per_s\":{:.2f},\"shapes\":[{}]}}",
                     cpu_isa_name(isa), peak * 1e-9, json);
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const double bandwidth = read_bytes_per_second();
  const std::string device = cpu_model_name();
  fmt::print("{}, one core; memory {:.1f} GB/s\n", device, bandwidth * 1e-9);
  bool good = true;
  std::string json;
  for (const CpuIsa isa : options.isas) {
    const std::string object = bench_isa(isa, options, bandwidth, good);
    if (!object.empty()) json += (json.empty() ? "" : ",") + object;
  }
  fmt::print(
      "{{\"bench\":\"matmul\",\"commit\":\"{}\",\"device\":\"{}\",\"contract\":\"{}\","
      "\"memory_gb_per_s\":{:.2f},\"results\":[{}]}}\n",
      EXACT_COMMIT, device, contract::kRulesVersion, bandwidth * 1e-9, json);
  return options.check && !good ? 1 : 0;
}

}  // namespace
}  // namespace exact::bench

int main(int argc, char** argv) {
  return exact::bench::run(argc, argv);
}
