// cpu_test_support.h: what the CPU backend's tests share: a backend for each instruction set, data
// made to find faults, and comparisons that say where two results part.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/expect_bits.h"
#include "tests/support/random_data.h"

namespace exact {

inline constexpr CpuIsa kAllIsas[] = {CpuIsa::scalar, CpuIsa::avx2, CpuIsa::avx512};

inline std::string isa_test_name(const testing::TestParamInfo<CpuIsa>& info) {
  return std::string(cpu_isa_name(info.param));
}

// A test for each instruction set; skipped, with the reason, where the machine lacks it.
class CpuIsaTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!cpu_isa_available(GetParam())) {
      GTEST_SKIP() << "this machine lacks " << cpu_isa_name(GetParam());
    }
    backend_ = make(2);
  }
  static std::unique_ptr<Backend> make(int threads) {
    auto backend = make_cpu_backend({GetParam(), threads});
    EXPECT_TRUE(backend.is_ok()) << backend.status().to_string();
    return std::move(backend).value();
  }
  std::unique_ptr<Backend> backend_;
};

inline std::vector<uint16_t> draw(RandomData& data, DataKind kind, int64_t count) {
  return data.bf16s(kind, static_cast<size_t>(count));
}

inline bool is_nan_bf16(uint16_t value) {
  return (value & 0x7fffu) > 0x7f80u;
}

// Equal bits; two NaNs count as equal, since the rules fix a NaN's bits in the chain alone.
inline bool same_bits(uint16_t a, uint16_t b) {
  return a == b || (is_nan_bf16(a) && is_nan_bf16(b));
}
inline bool same_bits(float a, float b) {
  return float_bits(a) == float_bits(b) || (a != a && b != b);
}

// `where` says seed and shape.
template <class T>
void expect_same(std::span<const T> got, std::span<const T> want, const std::string& where) {
  ASSERT_EQ(got.size(), want.size()) << where;
  size_t differing = 0, first = 0;
  for (size_t i = 0; i < got.size(); i++) {
    if (same_bits(got[i], want[i])) continue;
    if (differing++ == 0) first = i;
  }
  EXPECT_EQ(differing, 0u) << where << ": first at " << first << ", got " << hex_of(got[first])
                           << ", want " << hex_of(want[first]) << ", of " << got.size();
}
inline void expect_same(const std::vector<uint16_t>& got, const std::vector<uint16_t>& want,
                        const std::string& where) {
  expect_same(std::span<const uint16_t>(got), std::span<const uint16_t>(want), where);
}

// A view of host memory: the CPU backend's memory is the host's.
inline TensorView host_view(const std::vector<uint16_t>& data, int64_t rows, int64_t columns) {
  EXPECT_EQ(data.size(), static_cast<size_t>(rows * columns));
  return TensorView(const_cast<uint16_t*>(data.data()), DType::bf16, rows, columns);
}

}  // namespace exact
