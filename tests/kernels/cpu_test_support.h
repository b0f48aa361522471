// cpu_test_support.h: what the CPU backend's tests share: a backend for each instruction set, data
// made to find faults, and comparisons that say where two results part.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact::test {

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

// Kinds of bf16 data. `tame` stays where no rule's edge is; the others look for edges.
enum class DataKind {
  tame,          // a normal distribution
  wide,          // exponents over 60 binades
  any_bits,      // NaN, infinities, subnormals
  largest_unit,  // +-1.9921875: sums that leave int32
  tiny,          // subnormals and the smallest normals
  sparse,        // half of it zero
  cancelling,    // pairs that nearly cancel
  ones,          // all ones: a dropped tail shows
  zeros,
  huge,  // exponents over the whole range, finite
};
inline constexpr DataKind kAllKinds[] = {DataKind::tame,         DataKind::wide, DataKind::any_bits,
                                         DataKind::largest_unit, DataKind::tiny, DataKind::sparse,
                                         DataKind::cancelling,   DataKind::ones, DataKind::zeros,
                                         DataKind::huge};

class DataSource {
 public:
  explicit DataSource(uint64_t seed) : engine_(seed) {}

  uint32_t bits() { return static_cast<uint32_t>(engine_()); }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  float normal() { return std::normal_distribution<float>(0.0f, 1.0f)(engine_); }

  uint16_t value(DataKind kind, size_t index) {
    switch (kind) {
      case DataKind::tame:
        return float_to_bf16(normal());
      case DataKind::wide:
        return float_to_bf16(std::ldexp(normal(), static_cast<int>(between(-30, 29))));
      case DataKind::any_bits:
        return static_cast<uint16_t>(bits());
      case DataKind::largest_unit:
        return static_cast<uint16_t>((bits() & 0x8000u) | 0x3fffu);
      case DataKind::tiny:
        return static_cast<uint16_t>(bits() & 0x80ffu);
      case DataKind::sparse:
        return (bits() & 1u) != 0 ? uint16_t{0} : float_to_bf16(normal());
      case DataKind::cancelling:
        return static_cast<uint16_t>(((index & 1u) << 15) | 0x4200u | (bits() & 3u));
      case DataKind::ones:
        return 0x3f80;
      case DataKind::zeros:
        return static_cast<uint16_t>(bits() & 0x8000u);
      case DataKind::huge:
        return static_cast<uint16_t>((bits() & 0x807fu) | (bits() % 255u) << 7);
    }
    return 0;
  }

  std::vector<uint16_t> values(DataKind kind, int64_t count) {
    std::vector<uint16_t> data(static_cast<size_t>(count));
    for (size_t i = 0; i < data.size(); i++) data[i] = value(kind, i);
    return data;
  }

 private:
  std::mt19937_64 engine_;
};

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

inline std::string hex(uint16_t value) {
  char text[8];
  std::snprintf(text, sizeof(text), "%04x", static_cast<unsigned>(value));
  return text;
}
inline std::string hex(float value) {
  char text[12];
  std::snprintf(text, sizeof(text), "%08x", static_cast<unsigned>(float_bits(value)));
  return text;
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
  EXPECT_EQ(differing, 0u) << where << ": first at " << first << ", got " << hex(got[first])
                           << ", want " << hex(want[first]) << ", of " << got.size();
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

}  // namespace exact::test
