// Rule N1 by hand: each case isolates one property of the tensor core's step.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/tensor_core.h"
#include "tests/support/expect_bits.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

using contract::tensor_core_chain;
using contract::tensor_core_chain_k8;
using contract::tensor_core_step;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Product {
  double a;
  double b;
};

// A step of the given products, zeros elsewhere.
float step(const std::vector<Product>& products, float c) {
  std::array<uint16_t, 16> a{};
  std::array<uint16_t, 16> b{};
  for (size_t i = 0; i < products.size(); i++) {
    a[i] = float_to_bf16(static_cast<float>(products[i].a));
    b[i] = float_to_bf16(static_cast<float>(products[i].b));
  }
  return tensor_core_step(a.data(), 1, b.data(), 1, c);
}

uint32_t step_bits(const std::vector<Product>& products, float c) {
  return float_bits(step(products, c));
}

TEST(TensorCoreStep, ZeroIsNeverNegative) {
  EXPECT_EQ(step_bits({}, -0.0f), 0u);
  EXPECT_EQ(step_bits({{-1, 0}, {-0.0, 5}}, -0.0f), 0u);
  EXPECT_EQ(step_bits({{1, 1}}, -1.0f), 0u);
}

TEST(TensorCoreStep, ZeroProductsKeepTheAccumulator) {
  for (const float c : {1.2345678f, -3e38f, 1e-40f, -1e-45f, 1e-38f})
    EXPECT_EQ(step_bits({}, c), float_bits(c)) << c;
}

TEST(TensorCoreStep, ProductsOfZeroCarryTheOthersExponent) {
  // 0 * 2^100 has exponent -26: what lies below 2^-51 is cut away.
  EXPECT_EQ(step_bits({{0, 0x1p100}}, 0x1p-60f), 0u);
  EXPECT_EQ(step({{0, 0x1p100}}, 0x1p-50f), 0x1p-50f);
}

TEST(TensorCoreStep, TwentyFiveFractionBitsAreKept) {
  EXPECT_EQ(step({{1, 1}, {1, 0x1p-25}}, -1.0f), 0x1p-25f);
  EXPECT_EQ(step({{1, 1}, {1, 0x1p-26}}, -1.0f), 0.0f);
}

TEST(TensorCoreStep, TermsAreTruncatedTowardsZeroOneByOne) {
  EXPECT_EQ(step({{1, 1}, {1, -0x1p-26}}, -1.0f), 0.0f);
  EXPECT_EQ(step({{1, 1}, {1, 0x1p-26}, {1, 0x1p-26}}, -1.0f), 0.0f);
}

TEST(TensorCoreStep, ResultIsRoundedTowardsZero) {
  EXPECT_EQ(step({{1, 1}, {1, 0x1.8p-24}}, 0.0f), 1.0f);  // to nearest: 1 + 2^-23
  EXPECT_EQ(step({{-1, 1}, {-1, 0x1.8p-24}}, 0.0f), -1.0f);
}

TEST(TensorCoreStep, SixteenProductsAreOneSum) {
  std::vector<Product> products(16, {1, 1});
  products[15].b = 0x1p-26;
  EXPECT_EQ(step(products, -15.0f), 0.0f);  // two sums of eight would keep it
}

TEST(TensorCoreStep, ProductExponentsAreNotNormalised) {
  const double a = 1.9921875;  // a * a = 3.968..., exponent 0 + 0 all the same
  EXPECT_EQ(step({{a, a}, {0x1p-25, 1}, {-a, a}}, 0.0f), 0x1p-25f);
  // The accumulator's own exponent is that of its fp32 value: 1 here.
  EXPECT_EQ(step({{a, a}, {0x1p-25, 1}}, static_cast<float>(-(a * a))), 0.0f);
}

TEST(TensorCoreStep, SubnormalsAreKept) {
  EXPECT_EQ(step({{0x1p-133, 1}}, 0.0f), 0x1p-133f);
  EXPECT_EQ(step({{0x1p-70, 0x1p-70}}, 0x1p-149f), 0x1p-140f + 0x1p-149f);
  EXPECT_EQ(step({{0x1p-75, 0x1p-75}}, 0.0f), 0.0f);  // below the last bit
  EXPECT_EQ(step({{-0x1p-75, 0x1p-75}}, 0.0f), 0.0f);
}

TEST(TensorCoreStep, NanIsCanonical) {
  const float nan = float_from_bits(0xffc12345u);
  EXPECT_EQ(step_bits({}, nan), 0x7fffffffu);
  EXPECT_EQ(step_bits({{nan, 1}}, 0.0f), 0x7fffffffu);
  EXPECT_EQ(step_bits({{kInfinity, 0}}, 0.0f), 0x7fffffffu);
  EXPECT_EQ(step_bits({{kInfinity, 1}, {kInfinity, -1}}, 0.0f), 0x7fffffffu);
  EXPECT_EQ(step_bits({{kInfinity, 1}}, -kInfinity), 0x7fffffffu);
}

TEST(TensorCoreStep, InfinitiesFollowFromOperandsAndOverflow) {
  EXPECT_EQ(step({{kInfinity, -2}}, 1.0f), -kInfinity);
  EXPECT_EQ(step({{1, 1}}, kInfinity), kInfinity);
  EXPECT_EQ(step({{3e38, 3e38}}, 0.0f), kInfinity);
  EXPECT_EQ(step({{-3e38, 3e38}}, 0.0f), -kInfinity);
  EXPECT_EQ(step({{3e38, 1}}, 3e38f), kInfinity);
}

TEST(TensorCoreStep, OverflowInsideTheSumMayCancel) {
  EXPECT_EQ(step({{0x1p120, 0x1p20}, {-0x1p120, 0x1p20}}, 1.0f), 0.0f);
  EXPECT_EQ(step({{0x1p120, 0x1p20}, {-0x1p120, 0x1p20}}, 0x1p120f), 0x1p120f);
}

TEST(TensorCoreStep, OperandsMayBeSwappedAndPermuted) {
  RandomData random;
  for (int i = 0; i < 4000; i++) {
    const auto a = random.bf16s(random.pick(kAllDataKinds), 16);
    const auto b = random.bf16s(random.pick(kAllDataKinds), 16);
    const float c = bf16_to_float(random.bf16(random.pick(kAllDataKinds)));
    const float want = tensor_core_step(a.data(), 1, b.data(), 1, c);
    EXPECT_EQ(float_bits(tensor_core_step(b.data(), 1, a.data(), 1, c)), float_bits(want))
        << random.describe() << " case " << i;
    const auto reversed_a = std::vector<uint16_t>(a.rbegin(), a.rend());
    const auto reversed_b = std::vector<uint16_t>(b.rbegin(), b.rend());
    EXPECT_EQ(float_bits(tensor_core_step(reversed_a.data(), 1, reversed_b.data(), 1, c)),
              float_bits(want))
        << random.describe() << " case " << i;
  }
}

// Where no term loses a bit, the step is the exact sum rounded towards zero.
TEST(TensorCoreStep, NarrowSumsAreExactThenRoundedTowardsZero) {
  RandomData random;
  for (int i = 0; i < 4000; i++) {
    std::vector<Product> products(16);
    double exact = random.normal() > 0 ? 0x1.234568p3 : -0x1.fffffep2;
    const auto c = static_cast<float>(exact);
    for (Product& product : products) {
      product = {static_cast<double>(random.between(-255, 255)) / 64,
                 static_cast<double>(random.between(-255, 255)) / 64};
      exact += product.a * product.b;
    }
    auto want = static_cast<float>(exact);
    if (std::fabs(static_cast<double>(want)) > std::fabs(exact)) want = std::nextafter(want, 0.0f);
    EXPECT_EQ(float_bits(step(products, c)), float_bits(want + 0.0f))
        << random.describe() << " case " << i;
  }
}

TEST(TensorCoreChain, IsStepsInAscendingOrder) {
  RandomData random;
  const auto a = random.bf16s(DataKind::normal, 64);
  const auto b = random.bf16s(DataKind::normal, 64);
  float c = 0.5f;
  for (size_t k = 0; k < 64; k += 16) c = tensor_core_step(&a[k], 1, &b[k], 1, c);
  EXPECT_EQ(float_bits(tensor_core_chain(a.data(), 1, b.data(), 1, 64, 0.5f)), float_bits(c));
}

TEST(TensorCoreChain, ReadsStridedColumns) {
  RandomData random;
  const auto a = random.bf16s(DataKind::normal, 32);
  const auto wide = random.bf16s(DataKind::normal, 32 * 5);
  std::vector<uint16_t> column;
  for (size_t k = 0; k < 32; k++) column.push_back(wide[k * 5 + 3]);
  EXPECT_EQ(float_bits(tensor_core_chain(a.data(), 1, &wide[3], 5, 32, 0.0f)),
            float_bits(tensor_core_chain(a.data(), 1, column.data(), 1, 32, 0.0f)));
}

TEST(TensorCoreChain, RemainderIsPaddedWithZeros) {
  RandomData random;
  for (const size_t count : {1u, 8u, 15u, 17u, 24u, 40u}) {
    for (const DataKind kind : kAllDataKinds) {
      auto a = random.bf16s(kind, count);
      auto b = random.bf16s(DataKind::wide_exponents, count);
      const float got =
          tensor_core_chain(a.data(), 1, b.data(), 1, static_cast<int64_t>(count), 0.0f);
      a.resize(48, 0);
      b.resize(48, 0);
      EXPECT_EQ(float_bits(got), float_bits(tensor_core_chain(a.data(), 1, b.data(), 1, 48, 0.0f)))
          << random.describe() << " count " << count << " " << data_kind_name(kind);
    }
  }
}

TEST(TensorCoreChain, StepsOfEightAreHalfEmptySteps) {
  RandomData random;
  const auto a = random.bf16s(DataKind::wide_exponents, 32);
  const auto b = random.bf16s(DataKind::wide_exponents, 32);
  float want = 0.0f;
  for (size_t k = 0; k < 32; k += 8) {
    std::array<uint16_t, 16> half_a{};
    std::array<uint16_t, 16> half_b{};
    std::copy_n(&a[k], 8, half_a.begin());
    std::copy_n(&b[k], 8, half_b.begin());
    want = tensor_core_step(half_a.data(), 1, half_b.data(), 1, want);
  }
  EXPECT_EQ(float_bits(tensor_core_chain_k8(a.data(), 1, b.data(), 1, 32, 0.0f)), float_bits(want));
}

TEST(TensorCoreChain, AllOnesCountsEveryElement) {
  const std::vector<uint16_t> ones(4096, 0x3f80);
  for (const int64_t k : {1, 15, 16, 17, 1000, 4096})
    EXPECT_EQ(tensor_core_chain(ones.data(), 1, ones.data(), 1, k, 0.0f), static_cast<float>(k));
}

}  // namespace
}  // namespace exact
