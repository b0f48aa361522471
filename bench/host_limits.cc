#include "bench/host_limits.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace exact::bench {
namespace {

constexpr int64_t kFmaRounds = 2'000'000;
constexpr size_t kReadBytes = size_t{256} << 20;
constexpr int kRepeats = 5;

// Keeps a value alive without a store that the loop would wait for.
template <class T>
void keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

#if defined(__x86_64__)
// Twelve chains hide the latency of an fma on every core that has AVX2.
__attribute__((target("avx512f"))) int64_t fma_avx512(int64_t rounds) {
  __m512 sums[12];
  for (auto& sum : sums) sum = _mm512_set1_ps(1.0f);
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
    for (auto& sum : sums) sum = _mm512_fmadd_ps(sum, a, b);
  }
  for (const auto& sum : sums) keep(sum);
  return rounds * 12 * 16;
}

__attribute__((target("avx2,fma"))) int64_t fma_avx2(int64_t rounds) {
  __m256 sums[12];
  for (auto& sum : sums) sum = _mm256_set1_ps(1.0f);
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
    for (auto& sum : sums) sum = _mm256_fmadd_ps(sum, a, b);
  }
  for (const auto& sum : sums) keep(sum);
  return rounds * 12 * 8;
}
#endif

// A multiply and an add count as one.
int64_t fma_baseline(int64_t rounds) {
  float sums[32];
  for (float& sum : sums) sum = 1.0f;
  for (int64_t i = 0; i < rounds; i++) {
    for (float& sum : sums) sum = sum * 0.999f + 0.001f;
    keep(i);
  }
  keep(sums);
  return rounds * 32;
}

int64_t run_fma(CpuIsa isa, int64_t rounds) {
#if defined(__x86_64__)
  if (isa == CpuIsa::avx512) return fma_avx512(rounds);
  if (isa == CpuIsa::avx2) return fma_avx2(rounds);
#endif
  (void)isa;
  return fma_baseline(rounds);
}

}  // namespace

double peak_fma_per_second(CpuIsa isa) {
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; repeat++) {
    const double start = thread_seconds();
    const auto count = static_cast<double>(run_fma(isa, kFmaRounds));
    best = std::max(best, count / (thread_seconds() - start));
  }
  return best;
}

// In huge pages and fetched ahead: the most that one core gets.
double read_bytes_per_second() {
  constexpr size_t kHugePage = size_t{2} << 20;
  constexpr size_t kAhead = 2048;  // words
  const std::unique_ptr<uint64_t, void (*)(void*)> memory(
      static_cast<uint64_t*>(std::aligned_alloc(kHugePage, kReadBytes)), std::free);
  if (memory == nullptr) return 0;
  madvise(memory.get(), kReadBytes, MADV_HUGEPAGE);
  uint64_t* data = memory.get();
  constexpr size_t kWords = kReadBytes / sizeof(uint64_t);
  std::fill_n(data, kWords, uint64_t{1});
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; repeat++) {
    const double start = thread_seconds();
    uint64_t sums[8] = {};
    for (size_t i = 0; i < kWords; i += 8) {
      __builtin_prefetch(data + std::min(i + kAhead, kWords - 1));
      for (size_t j = 0; j < 8; j++) sums[j] += data[i + j];
    }
    keep(sums);
    best = std::max(best, static_cast<double>(kReadBytes) / (thread_seconds() - start));
  }
  return best;
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

}  // namespace exact::bench
