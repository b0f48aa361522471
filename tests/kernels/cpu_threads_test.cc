// Threads divide rows and columns, never a sum: their number changes no bit. And the pool itself.
#include <atomic>

#include "kernels/cpu/thread_pool.h"
#include "tests/kernels/cpu_test_support.h"

namespace exact {
namespace {

class CpuThreads : public CpuIsaTest {
 protected:
  // Every operation that is split, one after another; all results in one vector.
  static std::vector<uint16_t> run_all(Backend& backend) {
    constexpr int64_t kRows = 45, kWidth = 128, kOut = 200, kVocabulary = 1000;
    RandomData data(5);
    const auto x = draw(data, DataKind::normal, kRows * kWidth);
    const auto w = draw(data, DataKind::normal, kOut * kWidth);
    const auto norm = draw(data, DataKind::normal, kWidth);
    const auto logits = draw(data, DataKind::normal, kRows * kVocabulary);
    std::vector<uint16_t> all;
    std::vector<uint16_t> normed(x.size()), out(kRows * kOut), attended(x.size());
    const auto keep = [&](const std::vector<uint16_t>& part) {
      all.insert(all.end(), part.begin(), part.end());
    };
    backend.rms_norm(host_view(x, kRows, kWidth), host_view(norm, 1, kWidth), 1e-6f, NormForm::hf,
                     host_view(normed, kRows, kWidth));
    keep(normed);
    LinearWeight packed;
    EXPECT_TRUE(backend.pack_whole(host_view(w, kOut, kWidth), packed).is_ok());
    backend.linear(host_view(normed, kRows, kWidth), packed, nullptr, host_view(out, kRows, kOut));
    keep(out);
    const std::vector<int32_t> first_pages = {3, 4}, second_pages = {2, 0, 1};
    const SequenceChunk chunks[] = {{0, 20, 0, first_pages}, {20, 25, 0, second_pages}};
    auto cache = backend.allocate_kv({1, 5, 16, 2, 32});
    backend.begin_step({{}, {}, chunks});
    backend.store_kv(host_view(draw(data, DataKind::normal, kRows * 64), kRows, 64),
                     host_view(draw(data, DataKind::normal, kRows * 64), kRows, 64), 0, *cache);
    backend.attention(host_view(normed, kRows, kWidth), *cache, 0,
                      host_view(attended, kRows, kWidth));
    keep(attended);
    std::vector<SampleRow> rows(kRows);
    for (int64_t r = 0; r < kRows; r++) {
      rows[static_cast<size_t>(r)] = {r, 6, static_cast<uint32_t>(r), 3, 0.9f, 50, 0.9f, 0.01f};
    }
    std::vector<SampleOutcome> outcomes(kRows);
    backend.sample(host_view(logits, kRows, kVocabulary), rows, outcomes);
    for (const SampleOutcome& outcome : outcomes) {
      const uint32_t bits = float_bits(outcome.logprob);
      keep({static_cast<uint16_t>(outcome.token), static_cast<uint16_t>(bits),
            static_cast<uint16_t>(bits >> 16)});
    }
    EXPECT_TRUE(backend.finish().is_ok());
    return all;
  }
};

TEST_P(CpuThreads, TheirNumberChangesNoBit) {
  const auto one = run_all(*make(1));
  for (const int threads : {2, 3, 4}) {
    auto backend = make(threads);
    EXPECT_EQ(backend->threads(), threads);
    for (int repeat = 0; repeat < 3; repeat++) {
      EXPECT_BITS_EQ(run_all(*backend), one, std::to_string(threads) + " threads");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuThreads, testing::ValuesIn(kAllIsas), isa_test_name);

TEST(ThreadPool, EveryTaskRunsOnce) {
  for (const int threads : {1, 2, 5}) {
    cpu::ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      for (int repeat = 0; repeat < 20; repeat++) {
        std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
        std::atomic<bool> in_range{true};
        pool.run(count, [&](int64_t index, int thread) {
          runs[static_cast<size_t>(index)]++;
          if (thread < 0 || thread >= threads) in_range = false;
        });
        EXPECT_TRUE(in_range);
        for (const auto& count_of_one : runs) EXPECT_EQ(count_of_one, 1);
      }
    }
  }
}

TEST(ThreadPool, DefaultIsTheCoresOfThisProcess) {
  auto backend = make_cpu_backend();
  ASSERT_TRUE(backend.is_ok());
  EXPECT_EQ((*backend)->threads(), cpu::allowed_core_count());
}

TEST(CpuOptions, WrongOnesAreRefused) {
  EXPECT_EQ(make_cpu_backend({CpuIsa::scalar, -1}).status().code(), Code::invalid);
  EXPECT_EQ(make_cpu_backend({CpuIsa::scalar, 100000}).status().code(), Code::invalid);
  EXPECT_EQ(cpu_isa_from_name("sse9").status().code(), Code::invalid);
  EXPECT_EQ(*cpu_isa_from_name("auto"), best_cpu_isa());
  for (const CpuIsa isa : kAllIsas) EXPECT_EQ(*cpu_isa_from_name(cpu_isa_name(isa)), isa);
}

TEST(CpuMemory, ImpossibleSizesAreExhausted) {
  auto backend = make_cpu_backend({CpuIsa::scalar, 1});
  ASSERT_TRUE(backend.is_ok());
  EXPECT_EQ((*backend)->allocate(size_t{1} << 62).status().code(), Code::exhausted);
  EXPECT_EQ((*backend)->allocate(SIZE_MAX).status().code(), Code::exhausted);
  EXPECT_EQ((*backend)->allocate_kv({1, 1, 17, 1, 64}).status().code(), Code::invalid);
  EXPECT_EQ((*backend)->allocate_kv({1, 1, 16, 1, 63}).status().code(), Code::unsupported);
  auto buffer = (*backend)->allocate(1000);
  ASSERT_TRUE(buffer.is_ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
  const auto* bytes = static_cast<const uint8_t*>(buffer->data());
  for (int i = 0; i < 1000; i++) ASSERT_EQ(bytes[i], 0);
}

}  // namespace
}  // namespace exact
