// What surrounds the CPU backend's arithmetic: refusals, checks, profiles, working memory.
#include "kernels/cpu/scratch.h"
#include "tests/kernels/cpu_test_support.h"

namespace exact {
namespace {

class CpuBackendTest : public CpuIsaTest {
 protected:
  // One linear layer and one attention over a few rows.
  static void compute(Backend& backend) {
    RandomData data(1);
    const auto x = draw(data, DataKind::normal, 8 * 64);
    const auto w = draw(data, DataKind::normal, 64 * 64);
    std::vector<uint16_t> out(8 * 64);
    LinearWeight packed;
    ASSERT_TRUE(backend.pack_whole(host_view(w, 64, 64), packed).is_ok());
    backend.linear(host_view(x, 8, 64), packed, nullptr, host_view(out, 8, 64));
    auto cache = backend.allocate_kv({1, 1, 16, 1, 64});
    ASSERT_TRUE(cache.is_ok());
    const std::vector<int32_t> pages = {0};
    const SequenceChunk chunk{0, 8, 0, pages};
    backend.begin_step({{}, {}, std::span(&chunk, 1)});
    backend.store_kv(host_view(x, 8, 64), host_view(x, 8, 64), 0, *cache);
    backend.attention(host_view(x, 8, 64), *cache, 0, host_view(out, 8, 64));
    EXPECT_TRUE(backend.finish().is_ok());
  }
};

TEST_P(CpuBackendTest, ItsNameSaysTheInstructionSet) {
  EXPECT_EQ(backend_->name(), "cpu-" + std::string(cpu_isa_name(GetParam())));
}

TEST_P(CpuBackendTest, ShapesOutsideTheContractAreRefusedByName) {
  const Status linear = backend_->supports_linear(5003, 64);
  EXPECT_EQ(linear.code(), Code::unsupported);
  EXPECT_NE(linear.message().find("5003"), std::string::npos) << linear.message();
  EXPECT_EQ(backend_->supports_linear(64, 24).code(), Code::unsupported);
  EXPECT_EQ(backend_->supports_attention(8, 3, 64).code(), Code::unsupported);
  EXPECT_EQ(backend_->supports_attention(8, 2, 72).code(), Code::unsupported);
  EXPECT_EQ(backend_->supports_vocabulary(50257).code(), Code::unsupported);
  EXPECT_TRUE(backend_->supports_linear(4864, 896).is_ok());
  EXPECT_TRUE(backend_->supports_attention(14, 2, 64).is_ok());
  EXPECT_TRUE(backend_->supports_vocabulary(151936).is_ok());
}

TEST_P(CpuBackendTest, AProfileAddsUp) {
  CpuProfile profile;
  auto backend = make_cpu_backend({GetParam(), 2, &profile});
  ASSERT_TRUE(backend.is_ok());
  ASSERT_NO_FATAL_FAILURE(compute(**backend));
  EXPECT_GT(profile.linear, 0);
  EXPECT_GT(profile.attention, 0);
  EXPECT_GT(profile.copies, 0);
  EXPECT_EQ(profile.logits, 0);
  EXPECT_GT(profile.chain, 0);
  EXPECT_LT(profile.chain, profile.linear + profile.attention);
  EXPECT_NEAR(profile.total, profile.linear + profile.attention + profile.copies, 1e-9);
}

TEST_P(CpuBackendTest, UploadAndDownloadAreInverse) {
  auto buffer = backend_->allocate(6 * 8 * 2);
  ASSERT_TRUE(buffer.is_ok());
  RandomData data(2);
  const auto sent = draw(data, DataKind::any_bits, 6 * 8);
  std::vector<uint16_t> received(sent.size());
  const TensorView view = buffer->view(DType::bf16, 6, 8);
  backend_->upload(view, std::as_bytes(std::span(sent)));
  backend_->download(std::as_writable_bytes(std::span(received)), view);
  EXPECT_EQ(received, sent);
}

using CpuBackendDeathTest = CpuBackendTest;

TEST_P(CpuBackendDeathTest, BrokenPromisesStopTheProgram) {
  backend_ = make(1);  // a death test forks: threads would be lost
  const std::vector<uint16_t> data(64 * 64);
  EXPECT_DEATH(backend_->add(host_view(data, 64, 64), host_view(data, 32, 128)), "wrong shape");
  const std::vector<int32_t> ids = {64}, positions = {0};
  backend_->begin_step({ids, positions, {}});
  EXPECT_DEATH(backend_->embed(host_view(data, 64, 64), host_view(data, 64, 64).slice_rows(0, 1)),
               "token id outside the table");
  auto cache = backend_->allocate_kv({1, 2, 16, 1, 64});
  ASSERT_TRUE(cache.is_ok());
  const std::vector<int32_t> pages = {2};
  const SequenceChunk outside{0, 1, 0, pages};
  const SequenceChunk missing{0, 17, 0, std::span(pages).first(1)};
  for (const SequenceChunk& chunk : {outside, missing}) {
    backend_->begin_step({{}, {}, std::span(&chunk, 1)});
    EXPECT_DEATH(backend_->attention(host_view(data, 64, 64), *cache, 0, host_view(data, 64, 64)),
                 "page outside the cache|without its pages");
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuBackendTest, testing::ValuesIn(kAllIsas), isa_test_name);
INSTANTIATE_TEST_SUITE_P(Isa, CpuBackendDeathTest, testing::ValuesIn(kAllIsas), isa_test_name);

TEST(ScratchBlock, KeepsItsHighWaterMark) {
  cpu::ScratchBlock block;
  void* first = block.reserve(1000);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % cpu::kCacheLine, 0u);
  EXPECT_EQ(block.reserve(10), first);
  EXPECT_EQ(block.reserve(1000), first);
  EXPECT_EQ(block.data(), first);
  EXPECT_NE(block.reserve(100000), nullptr);
  EXPECT_EQ(block.reserve(1000), block.data());
}

TEST(ScratchCutter, MeasuresWhatItCuts) {
  cpu::ScratchCutter measure(nullptr);
  EXPECT_EQ(measure.take<float>(3), nullptr);
  EXPECT_EQ(measure.take<uint8_t>(65), nullptr);
  EXPECT_EQ(measure.used(), 3 * cpu::kCacheLine);
  cpu::ScratchBlock block;
  auto* base = static_cast<std::byte*>(block.reserve(measure.used()));
  cpu::ScratchCutter cutter(base);
  EXPECT_EQ(static_cast<void*>(cutter.take<float>(3)), base);
  EXPECT_EQ(static_cast<void*>(cutter.take<uint8_t>(65)), base + cpu::kCacheLine);
  EXPECT_EQ(cutter.used(), measure.used());
}

}  // namespace
}  // namespace exact
