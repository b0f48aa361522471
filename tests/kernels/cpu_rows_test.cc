// Norms, rotation and pointwise operations of the CPU backend against the literal rules.
#include <numeric>

#include "kernels/reference/reference.h"
#include "tests/kernels/cpu_test_support.h"

namespace exact {
namespace {

class CpuRows : public CpuIsaTest {};

TEST_P(CpuRows, RmsNormOfEveryWidth) {
  uint64_t seed = 1;
  for (const int64_t width : {32, 40, 64, 80, 96, 128, 136, 256, 512, 520, 896, 1024, 2048, 5120,
                              8152, 8160, 8168, 8192, 12288}) {
    for (const NormForm form : {NormForm::hf, NormForm::fused}) {
      for (const DataKind kind : {DataKind::normal, DataKind::wide_exponents, DataKind::tiny}) {
        RandomData data(++seed);
        const auto x = draw(data, kind, 3 * width);
        const auto weight = draw(data, DataKind::normal, width);
        std::vector<uint16_t> got(x.size()), want(x.size());
        reference::rms_norm(x, weight, 1e-6f, form, want);
        backend_->rms_norm(host_view(x, 3, width), host_view(weight, 1, width), 1e-6f, form,
                           host_view(got, 3, width));
        expect_same(got, want, "seed " + std::to_string(seed) + ", D " + std::to_string(width));
      }
    }
  }
}

TEST_P(CpuRows, RopeWithAndWithoutHeadNorm) {
  uint64_t seed = 300;
  for (const int64_t width : {32, 64, 80, 96, 128, 256}) {
    for (const bool norm : {false, true}) {
      for (const NormForm form : {NormForm::hf, NormForm::fused}) {
        RandomData data(++seed);
        const std::vector<int32_t> positions = {4, 0, 19, 7, 7};
        const int64_t columns = 3 * width;
        auto x = draw(data, DataKind::normal, 5 * columns);
        auto want = x;
        const auto table = draw(data, DataKind::normal, 20 * 2 * width);
        const auto weight = draw(data, DataKind::normal, norm ? width : 0);
        reference::rope(want, positions, table, width, weight, 1e-6f, form);
        const TensorView weight_view = norm ? host_view(weight, 1, width) : TensorView();
        backend_->begin_step({positions, positions, {}});
        backend_->rope(host_view(x, 5, columns), host_view(table, 20, 2 * width),
                       norm ? &weight_view : nullptr, 1e-6f, form);
        expect_same(x, want, "seed " + std::to_string(seed) + ", E " + std::to_string(width));
      }
    }
  }
}

TEST_P(CpuRows, EveryBf16ThroughSilu) {
  std::vector<uint16_t> gate(65536), got(65536), want(65536);
  std::iota(gate.begin(), gate.end(), uint16_t{0});
  RandomData data(500);
  const auto up = draw(data, DataKind::normal, 65536);
  reference::silu_mul(gate, up, want);
  backend_->silu_mul(host_view(gate, 64, 1024), host_view(up, 64, 1024), host_view(got, 64, 1024));
  expect_same(got, want, "every gate");
}

TEST_P(CpuRows, AddOfAnyBits) {
  for (const DataKind kind : kAllDataKinds) {
    RandomData data(600);
    auto x = draw(data, kind, 7 * 333);
    auto want = x;
    const auto y = draw(data, kind, 7 * 333);
    reference::add(want, y);
    backend_->add(host_view(x, 7, 333), host_view(y, 7, 333));
    expect_same(x, want, "seed 600");
  }
}

TEST_P(CpuRows, EmbedAndGatherCopyRows) {
  RandomData data(700);
  const auto table = draw(data, DataKind::any_bits, 10 * 24);
  const std::vector<int32_t> ids = {9, 0, 3, 3};
  const std::vector<int64_t> rows = {9, 0, 3, 3};
  std::vector<uint16_t> embedded(4 * 24), gathered(4 * 24), want(4 * 24);
  reference::embed(ids, table, 24, want);
  backend_->begin_step({ids, ids, {}});
  backend_->embed(host_view(table, 10, 24), host_view(embedded, 4, 24));
  backend_->gather_rows(host_view(table, 10, 24), rows, host_view(gathered, 4, 24));
  EXPECT_EQ(embedded, want);
  EXPECT_EQ(gathered, want);
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuRows, testing::ValuesIn(kAllIsas), isa_test_name);

}  // namespace
}  // namespace exact
