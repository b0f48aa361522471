// Linear layers of the CPU backend against the literal chain: shapes and data that look for edges.
#include "kernels/reference/reference.h"
#include "tests/kernels/cpu_test_support.h"

namespace exact {
namespace {

class CpuLinear : public CpuIsaTest {
 protected:
  struct Case {
    int64_t rows, out_features, in_features;
    DataKind x_kind, weight_kind;
    bool bias;
    uint64_t seed;
  };

  std::vector<uint16_t> multiply(Backend& backend, const Case& c, const std::vector<uint16_t>& x,
                                 const std::vector<uint16_t>& w, const std::vector<uint16_t>& b) {
    LinearWeight packed;
    EXPECT_TRUE(backend.pack_whole(host_view(w, c.out_features, c.in_features), packed).is_ok());
    std::vector<uint16_t> out(static_cast<size_t>(c.rows * c.out_features), 0xdead);
    const TensorView bias = c.bias ? host_view(b, 1, c.out_features) : TensorView();
    backend.linear(host_view(x, c.rows, c.in_features), packed, c.bias ? &bias : nullptr,
                   host_view(out, c.rows, c.out_features));
    EXPECT_TRUE(backend.finish().is_ok());
    return out;
  }

  void check(const Case& c) {
    RandomData data(c.seed);
    const auto x = draw(data, c.x_kind, c.rows * c.in_features);
    const auto w = draw(data, c.weight_kind, c.out_features * c.in_features);
    const auto b = draw(data, DataKind::normal, c.bias ? c.out_features : 0);
    std::vector<uint16_t> want(static_cast<size_t>(c.rows * c.out_features));
    reference::linear({c.rows, c.out_features, c.in_features}, x, w, b, want);
    expect_same(multiply(*backend_, c, x, w, b), want,
                "seed " + std::to_string(c.seed) + ", T " + std::to_string(c.rows) + ", N " +
                    std::to_string(c.out_features) + ", K " + std::to_string(c.in_features) +
                    ", kinds " + std::to_string(static_cast<int>(c.x_kind)) + " and " +
                    std::to_string(static_cast<int>(c.weight_kind)));
  }
};

TEST_P(CpuLinear, EveryPairOfDataKindsIsTheLiteralChain) {
  uint64_t seed = 100;
  for (const DataKind x_kind : kAllDataKinds) {
    for (const DataKind weight_kind : kAllDataKinds) {
      seed++;
      check({5, 40, 80, x_kind, weight_kind, seed % 2 == 0, seed});
    }
  }
}

TEST_P(CpuLinear, RandomShapesAreTheLiteralChain) {
  for (uint64_t seed = 1; seed <= 40; seed++) {
    RandomData data(seed);
    const auto kind = kAllDataKinds[data.between(0, 6)];
    check({data.between(1, 70), data.between(1, 100), data.between(1, 170), kind, DataKind::normal,
           data.between(0, 1) == 1, seed});
  }
}

TEST_P(CpuLinear, EveryTailOfInFeaturesIsAdded) {
  for (int64_t k = 1; k <= 48; k++) {
    check({3, 33, k, DataKind::all_ones, DataKind::all_ones, false, static_cast<uint64_t>(k)});
  }
}

TEST_P(CpuLinear, NothingButZerosIsPositiveZero) {
  constexpr int64_t kRows = 5, kOut = 40, kIn = 64;
  RandomData data(14);
  const auto w = draw(data, DataKind::normal, kOut * kIn);
  const std::vector<uint16_t> x(kRows * kIn, 0x8000);  // -0
  const auto out = multiply(*backend_, {kRows, kOut, kIn, {}, {}, false, 14}, x, w, {});
  EXPECT_EQ(out, std::vector<uint16_t>(out.size(), 0));
}

TEST_P(CpuLinear, UnpackedWeightsAreThePackedOnes) {
  for (uint64_t seed = 1; seed <= 60; seed++) {
    RandomData data(seed);
    const int64_t rows = data.between(1, 100), before = data.between(0, 70);
    const int64_t after = data.between(0, 70), columns = data.between(1, 170);
    const auto kind = kAllDataKinds[data.between(0, 6)];
    LinearWeight packed;
    ASSERT_TRUE(backend_->reserve_linear(before + rows + after, columns, packed).is_ok());
    const auto pack = [&](int64_t count, int64_t first_row) {
      const auto w = draw(data, kind, count * columns);
      if (count > 0) backend_->pack_linear(host_view(w, count, columns), first_row, packed);
      return w;
    };
    const auto want = pack(rows, before);  // its neighbours come later
    pack(before, 0);
    pack(after, before + rows);
    std::vector<uint16_t> out(static_cast<size_t>(rows * columns), 0xdead);
    ASSERT_TRUE(backend_->unpack_linear(packed, before, host_view(out, rows, columns)).is_ok());
    ASSERT_TRUE(backend_->finish().is_ok());
    EXPECT_EQ(out, want) << "seed " << seed << ", rows " << rows << " after " << before
                         << ", columns " << columns;
  }
}

TEST_P(CpuLinear, LongChainsKeepTheirOrder) {
  check({3, 32, 4864, DataKind::normal, DataKind::normal, true, 7});
  check({2, 32, 4096, DataKind::cancellation, DataKind::normal, false, 8});
}

TEST_P(CpuLinear, RowsBeyondOneBlockAreTheLiteralChain) {
  check({300, 33, 32, DataKind::normal, DataKind::normal, true, 9});
}

TEST_P(CpuLinear, ARowIgnoresItsNeighbours) {
  constexpr int64_t kRows = 37, kOut = 64, kIn = 256;
  RandomData data(11);
  const auto w = draw(data, DataKind::normal, kOut * kIn);
  const auto x = draw(data, DataKind::wide_exponents, kRows * kIn);
  const Case all{kRows, kOut, kIn, DataKind::wide_exponents, DataKind::normal, false, 11};
  const auto together = multiply(*backend_, all, x, w, {});
  for (int64_t t = 0; t < kRows; t++) {
    const std::vector<uint16_t> row(x.begin() + t * kIn, x.begin() + (t + 1) * kIn);
    const Case one{1, kOut, kIn, DataKind::wide_exponents, DataKind::normal, false, 11};
    const std::vector<uint16_t> want(together.begin() + t * kOut,
                                     together.begin() + (t + 1) * kOut);
    expect_same(multiply(*backend_, one, row, w, {}), want, "row " + std::to_string(t));
  }
}

TEST_P(CpuLinear, StridedRowsAreReadAndWritten) {
  constexpr int64_t kRows = 4, kOut = 40, kIn = 48, kStride = 70;
  RandomData data(12);
  const auto wide_x = draw(data, DataKind::normal, kRows * kStride);
  const auto w = draw(data, DataKind::normal, kOut * kIn);
  std::vector<uint16_t> x, want(kRows * kOut);
  for (int64_t t = 0; t < kRows; t++) {
    x.insert(x.end(), wide_x.begin() + t * kStride, wide_x.begin() + t * kStride + kIn);
  }
  reference::linear({kRows, kOut, kIn}, x, w, {}, want);
  LinearWeight packed;
  ASSERT_TRUE(backend_->pack_whole(host_view(w, kOut, kIn), packed).is_ok());
  std::vector<uint16_t> wide_out(kRows * kStride, 0xdead);
  TensorView x_view = host_view(wide_x, kRows, kStride);
  TensorView out_view = host_view(wide_out, kRows, kStride);
  x_view.columns = kIn;
  out_view.columns = kOut;
  backend_->linear(x_view, packed, nullptr, out_view);
  for (int64_t t = 0; t < kRows; t++) {
    const auto* row = &wide_out[static_cast<size_t>(t * kStride)];
    expect_same(std::span(row, kOut), std::span<const uint16_t>(want).subspan(t * kOut, kOut),
                "row " + std::to_string(t));
    for (int64_t j = kOut; j < kStride; j++) ASSERT_EQ(row[j], 0xdead) << "column " << j;
  }
}

TEST_P(CpuLinear, PackingReusesStorageThatFits) {
  RandomData data(13);
  LinearWeight packed;
  ASSERT_TRUE(backend_->pack_whole(host_view(draw(data, DataKind::normal, 64 * 32), 64, 32), packed)
                  .is_ok());
  const void* first = packed.storage.data();
  const auto w = draw(data, DataKind::normal, 40 * 16);
  ASSERT_TRUE(backend_->pack_whole(host_view(w, 40, 16), packed).is_ok());
  EXPECT_EQ(packed.storage.data(), first);
  EXPECT_EQ(packed.out_features, 40);
  EXPECT_EQ(packed.in_features, 16);
  const auto x = draw(data, DataKind::normal, 16);
  std::vector<uint16_t> out(40), want(40);
  reference::linear({1, 40, 16}, x, w, {}, want);
  backend_->linear(host_view(x, 1, 16), packed, nullptr, host_view(out, 1, 40));
  expect_same(out, want, "after a smaller weight");
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuLinear, testing::ValuesIn(kAllIsas), isa_test_name);

}  // namespace
}  // namespace exact
