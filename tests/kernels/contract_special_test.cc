// The functions of special.h by hand: exact points, the ends of the range, what is flushed, and how
// far from the true value each may be.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/special.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr uint32_t kNan = 0x7fffffffu;
const float kOtherNan = float_from_bits(0xffc00001u);

// The distance from `exact` in units of the last place of an fp32 near it.
double ulps(float got, double exact) {
  const auto nearest = static_cast<float>(std::fabs(exact));
  const double ulp =
      static_cast<double>(std::nextafter(nearest, kInfinity)) - static_cast<double>(nearest);
  return std::fabs(static_cast<double>(got) - exact) / ulp;
}

TEST(Ex2, IsExactAtIntegers) {
  for (int n = -126; n < 128; n++)
    EXPECT_EQ(contract::ex2(static_cast<float>(n)), std::ldexp(1.0f, n)) << n;
}

TEST(Ex2, FlushesSubnormalResults) {
  EXPECT_EQ(float_bits(contract::ex2(-127.0f)), 0u);
  EXPECT_EQ(float_bits(contract::ex2(-126.00001f)), 0u);
  EXPECT_EQ(float_bits(contract::ex2(-kInfinity)), 0u);
}

TEST(Ex2, EndsInInfinityAndNan) {
  EXPECT_EQ(contract::ex2(128.0f), kInfinity);
  EXPECT_EQ(contract::ex2(kInfinity), kInfinity);
  EXPECT_EQ(float_bits(contract::ex2(kOtherNan)), kNan);
  EXPECT_EQ(contract::ex2(1e-45f), 1.0f);
  EXPECT_EQ(contract::ex2(-0.0f), 1.0f);
}

// ex2.approx has 2^-22.5 relative error at most (PTX ISA): 2.9 units of the last place.
TEST(Ex2, IsWithinTheErrorThatPtxStates) {
  RandomData random;
  for (int i = 0; i < 100000; i++) {
    const auto x = static_cast<float>(static_cast<double>(random.between(-12500, 12700)) / 100 +
                                      static_cast<double>(random.normal()) / 1000);
    if (x < -126 || x >= 128) continue;
    EXPECT_LT(ulps(contract::ex2(x), std::exp2(static_cast<double>(x))), 2.9)
        << random.describe() << " x " << x;
  }
}

TEST(Rsqrt, IsExactAtPowersOfFour) {
  for (int n = -63; n < 64; n++)
    EXPECT_EQ(contract::rsqrt(std::ldexp(1.0f, 2 * n)), std::ldexp(1.0f, -n)) << n;
}

TEST(Rsqrt, TakesSubnormalsAsZeros) {
  EXPECT_EQ(contract::rsqrt(0.0f), kInfinity);
  EXPECT_EQ(contract::rsqrt(-0.0f), -kInfinity);
  EXPECT_EQ(contract::rsqrt(1e-40f), kInfinity);
  EXPECT_EQ(contract::rsqrt(-1e-40f), -kInfinity);
}

TEST(Rsqrt, EndsInZeroAndNan) {
  EXPECT_EQ(float_bits(contract::rsqrt(kInfinity)), 0u);
  EXPECT_EQ(float_bits(contract::rsqrt(-1.0f)), kNan);
  EXPECT_EQ(float_bits(contract::rsqrt(-kInfinity)), kNan);
  EXPECT_EQ(float_bits(contract::rsqrt(kOtherNan)), kNan);
}

// rsqrt.approx has 2^-22.9 relative error at most (PTX ISA): 2.2 units of the last place.
TEST(Rsqrt, IsWithinTheErrorThatPtxStates) {
  RandomData random;
  for (int i = 0; i < 100000; i++) {
    const float x = float_from_bits(static_cast<uint32_t>(random.between(0x00800000, 0x7f7fffff)));
    EXPECT_LT(ulps(contract::rsqrt(x), 1 / std::sqrt(static_cast<double>(x))), 2.2)
        << random.describe() << " x " << x;
  }
}

TEST(Exp, HasItsExactPointsAndEnds) {
  EXPECT_EQ(contract::exp(0.0f), 1.0f);
  EXPECT_EQ(contract::exp(-0.0f), 1.0f);
  EXPECT_EQ(float_bits(contract::exp(-kInfinity)), 0u);
  EXPECT_EQ(contract::exp(kInfinity), kInfinity);
  EXPECT_EQ(contract::exp(89.0f), kInfinity);
  EXPECT_EQ(float_bits(contract::exp(-200.0f)), 0u);
  EXPECT_EQ(float_bits(contract::exp(kOtherNan)), kNan);
}

TEST(Exp, KeepsSubnormalResults) {
  const float tiny = contract::exp(-100.0f);
  EXPECT_GT(tiny, 0.0f);
  EXPECT_LT(tiny, 0x1p-126f);
}

// CUDA's documentation: at most 2 units of the last place (1 for the function, with its ex2).
TEST(Exp, IsWithinTwoUlps) {
  RandomData random;
  for (int i = 0; i < 100000; i++) {
    const auto x = static_cast<float>(static_cast<double>(random.between(-8700000, 8870000)) / 1e5);
    EXPECT_LE(ulps(contract::exp(x), std::exp(static_cast<double>(x))), 2.0)
        << random.describe() << " x " << x;
  }
}

TEST(Exp, NeverExceedsOneBelowZero) {
  for (uint32_t bits = 0x80000000u; bits < 0xff800000u; bits += 997)
    ASSERT_LE(contract::exp(float_from_bits(bits)), 1.0f) << bits;
}

TEST(Log, HasItsExactPointsAndEnds) {
  EXPECT_EQ(float_bits(contract::log(1.0f)), 0u);
  EXPECT_EQ(contract::log(0.0f), -kInfinity);
  EXPECT_EQ(contract::log(-0.0f), -kInfinity);
  EXPECT_EQ(contract::log(kInfinity), kInfinity);
  EXPECT_EQ(float_bits(contract::log(-1.0f)), kNan);
  EXPECT_EQ(float_bits(contract::log(-1e-40f)), kNan);
  EXPECT_EQ(float_bits(contract::log(-kInfinity)), kNan);
  EXPECT_EQ(float_bits(contract::log(kOtherNan)), kNan);
}

// CUDA's documentation: at most 1 unit of the last place, subnormals included.
TEST(Log, IsWithinOneUlp) {
  RandomData random;
  for (int i = 0; i < 100000; i++) {
    const float x = float_from_bits(static_cast<uint32_t>(random.between(1, 0x7f7fffff)));
    EXPECT_LE(ulps(contract::log(x), std::log(static_cast<double>(x))), 1.0)
        << random.describe() << " x " << x;
  }
}

TEST(SinCos, HaveTheirExactPointsAndEnds) {
  EXPECT_EQ(float_bits(contract::sin(0.0f)), 0u);
  EXPECT_EQ(float_bits(contract::sin(-0.0f)), 0x80000000u);
  EXPECT_EQ(contract::cos(0.0f), 1.0f);
  EXPECT_EQ(float_bits(contract::sin(kInfinity)), kNan);
  EXPECT_EQ(float_bits(contract::cos(-kInfinity)), kNan);
  EXPECT_EQ(float_bits(contract::cos(kOtherNan)), kNan);
}

// CUDA's documentation: at most 2 units of the last place, over the whole range.
TEST(SinCos, AreWithinTwoUlpsBothSidesOfTheLargeReduction) {
  RandomData random;
  for (int i = 0; i < 100000; i++) {
    const float scale = i % 2 == 0 ? 30000.0f : 1e9f;
    const float x = random.normal() * scale;
    const auto exact = static_cast<double>(x);
    EXPECT_LE(ulps(contract::sin(x), std::sin(exact)), 2.0) << random.describe() << " x " << x;
    EXPECT_LE(ulps(contract::cos(x), std::cos(exact)), 2.0) << random.describe() << " x " << x;
  }
}

TEST(Pow, HasItsExactPointsAndEnds) {
  EXPECT_EQ(contract::pow(10000.0f, 0.0f), 1.0f);
  EXPECT_EQ(contract::pow(1.0f, 5.0f), 1.0f);
  EXPECT_EQ(contract::pow(2.0f, 10.0f), 1024.0f);
  EXPECT_EQ(contract::pow(10.0f, 100.0f), kInfinity);
  EXPECT_EQ(contract::pow(10.0f, -100.0f), 0.0f);
}

// CUDA's documentation: at most 4 units of the last place.
TEST(Pow, IsWithinFourUlpsButNotAlwaysNearest) {
  int not_nearest = 0;
  for (int i = 0; i < 10000; i++) {
    const auto exponent = static_cast<float>(i) / 10000.0f;
    const double exact = std::pow(500000.0, static_cast<double>(exponent));
    const float got = contract::pow(500000.0f, exponent);
    EXPECT_LE(ulps(got, exact), 4.0) << exponent;
    not_nearest += got != static_cast<float>(exact);
  }
  EXPECT_GT(not_nearest, 0) << "a correctly rounded power would be another function";
}

}  // namespace
}  // namespace exact
