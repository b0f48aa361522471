// matmul_test.cu: plain_matmul is the chain of rule N1, by the host's model, by goldens and beside
// decode_matmul.
#include <algorithm>
#include <span>

#include "kernels/cuda/decode_matmul.h"
#include "kernels/reference/reference.h"
#include "tests/cuda/matmul_problem.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"
#include "tests/support/golden_key.h"

namespace exact::cuda_test {
namespace {

class PlainMatmul : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
  }

  static std::vector<uint16_t> run_plain(const Shape& shape, const std::vector<uint16_t>& x,
                                         const std::vector<uint16_t>& weight,
                                         const std::vector<uint16_t>& bias) {
    const DeviceVector<uint16_t> x_data(x), weight_data(weight), bias_data(bias);
    const DeviceVector<uint16_t> out(
        std::vector<uint16_t>(area(shape.tokens, shape.n), kUntouched));
    const Status status =
        cuda::launch_plain_matmul(inputs_of(shape, x_data.data(), weight_data.data(),
                                            bias.empty() ? nullptr : bias_data.data(), out.data()),
                                  nullptr);
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return out.to_host();
  }

  static void expect_reference(const Shape& shape, const std::vector<uint16_t>& x,
                               const std::vector<uint16_t>& weight,
                               const std::vector<uint16_t>& bias, const std::string& what) {
    std::vector<uint16_t> want(area(shape.tokens, shape.n));
    reference::linear({.rows = shape.tokens, .out_features = shape.n, .in_features = shape.k}, x,
                      weight, bias, want);
    EXPECT_BITS_EQ(run_plain(shape, x, weight, bias), want, shape.to_string() + " " + what);
  }
};

TEST_F(PlainMatmul, EqualsTheReferenceForSmallAndOddShapes) {
  RandomData random;
  for (const Shape& shape : {Shape{1, 8, 16},
                             {7, 24, 32},
                             {1, 136, 48},
                             {128, 128, 64},
                             {129, 136, 80},
                             {200, 264, 208},
                             {33, 8, 1040},
                             {2, 1000, 192}}) {
    const auto x = random.bf16s(DataKind::normal, area(shape.tokens, shape.k));
    const auto weight = random.bf16s(DataKind::normal, area(shape.n, shape.k));
    const auto bias = random.bf16s(DataKind::normal, static_cast<size_t>(shape.n));
    expect_reference(shape, x, weight, {}, random.describe());
    expect_reference(shape, x, weight, bias, "with bias, " + random.describe());
  }
}

// NaN, infinities, subnormals, cancellation, and the K tail that all-ones shows.
TEST_F(PlainMatmul, EqualsTheReferenceOnEveryKindOfData) {
  RandomData random;
  for (const DataKind kind : kAllDataKinds) {
    for (const Shape& shape : {Shape{40, 72, 64}, {130, 40, 336}}) {
      const auto x = random.bf16s(kind, area(shape.tokens, shape.k));
      const auto weight = random.bf16s(kind, area(shape.n, shape.k));
      const auto bias = random.bf16s(DataKind::normal, static_cast<size_t>(shape.n));
      const std::string what = std::string(data_kind_name(kind)) + ", " + random.describe();
      expect_reference(shape, x, weight, {}, what);
      expect_reference(shape, x, weight, bias, "with bias, " + what);
    }
  }
}

TEST_F(PlainMatmul, EqualsStockPyTorch) {
  const GoldenFile golden("ops.safetensors");
  int checked = 0;
  for (const std::string& text : golden.keys()) {
    const GoldenKey key(text);
    if (key.operation != "linear" && key.operation != "linear_bias") continue;
    const Shape shape{8, key.numbers[0], key.numbers[1]};
    const auto x = hash_bf16(key.input("lin.x"), 1, area(8, shape.k), -2, 2);
    const auto weight = hash_bf16(key.input("lin.w"), 1, area(shape.n, shape.k), -1, 1);
    std::vector<uint16_t> bias;
    if (key.operation == "linear_bias")
      bias = hash_bf16(key.input("lin.b"), 1, static_cast<size_t>(shape.n), -1, 1);
    EXPECT_BITS_EQ(run_plain(shape, x, weight, bias), golden.values<uint16_t>(text), text);
    checked++;
  }
  EXPECT_EQ(checked, 8);
}

// linear_n and linear_k: PyTorch's own kernels there step otherwise.
TEST_F(PlainMatmul, RefusesTheGoldensOutsideTheContract) {
  const GoldenFile golden("ops2.safetensors");
  int checked = 0;
  for (const std::string& text : golden.keys()) {
    const GoldenKey key(text);
    if (key.operation != "linear_n" && key.operation != "linear_k") continue;
    const bool narrow = key.operation == "linear_n";
    const Shape shape{4, narrow ? key.numbers[0] : 128, narrow ? 768 : key.numbers[0]};
    const Status status =
        cuda::launch_plain_matmul(inputs_of(shape, nullptr, nullptr, nullptr, nullptr), nullptr);
    EXPECT_EQ(status.code(), Code::unsupported) << text;
    const std::string named = (narrow ? "out_features is " : "in_features is ") + key.tail;
    EXPECT_NE(status.message().find(named), std::string::npos) << text << ": " << status.message();
    checked++;
  }
  EXPECT_EQ(checked, 17);
}

TEST_F(PlainMatmul, EqualsDecodeMatmul) {
  for (const Shape& shape :
       {Shape{1, 2048, 2048}, {8, 520, 448}, {33, 1000, 4096}, {64, 4096, 512}}) {
    const DeviceVector<uint16_t> x(area(shape.tokens, shape.k)), weight(area(shape.n, shape.k));
    const DeviceVector<uint16_t> bias(static_cast<size_t>(shape.n));
    const DeviceVector<uint16_t> plain(area(shape.tokens, shape.n)),
        streamed(area(shape.tokens, shape.n));
    ASSERT_TRUE(
        cuda::fill_test_data(x.data(), shape.tokens, shape.k, cuda::TestSide::x, 1, nullptr));
    ASSERT_TRUE(
        cuda::fill_test_data(weight.data(), shape.n, shape.k, cuda::TestSide::weight, 2, nullptr));
    ASSERT_TRUE(cuda::fill_test_data(bias.data(), 1, shape.n, cuda::TestSide::bias, 3, nullptr));
    const auto plan =
        cuda::plan_decode_matmul(static_cast<int>(shape.tokens), shape.n, shape.k, 132);
    ASSERT_TRUE(plan.is_ok()) << plan.status().to_string();
    for (const uint16_t* bias_data :
         {static_cast<const uint16_t*>(nullptr), static_cast<const uint16_t*>(bias.data())}) {
      ASSERT_TRUE(cuda::launch_plain_matmul(
          inputs_of(shape, x.data(), weight.data(), bias_data, plain.data()), nullptr));
      ASSERT_TRUE(cuda::launch_decode_matmul(*plan, weight.data(), x.data(), shape.k, bias_data,
                                             streamed.data(), shape.n, nullptr));
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      EXPECT_BITS_EQ(plain.to_host(), streamed.to_host(), shape.to_string());
    }
  }
}

// Rows apart from each other: what lies between them is neither read nor written.
TEST_F(PlainMatmul, KeepsToItsStrides) {
  RandomData random;
  const Shape shape{135, 72, 144};
  const int64_t x_stride = shape.k + 24, out_stride = shape.n + 40;
  const auto x = random.bf16s(DataKind::normal, area(shape.tokens, shape.k));
  const auto weight = random.bf16s(DataKind::normal, area(shape.n, shape.k));
  std::vector<uint16_t> spread(area(shape.tokens, x_stride), uint16_t{0x7fc0});
  for (int64_t t = 0; t < shape.tokens; t++)
    std::copy_n(&x[area(t, shape.k)], shape.k, &spread[area(t, x_stride)]);
  const DeviceVector<uint16_t> x_data(spread), weight_data(weight);
  const DeviceVector<uint16_t> out(
      std::vector<uint16_t>(area(shape.tokens, out_stride), kUntouched));
  auto inputs = inputs_of(shape, x_data.data(), weight_data.data(), nullptr, out.data());
  inputs.x_stride = x_stride;
  inputs.out_stride = out_stride;
  ASSERT_TRUE(cuda::launch_plain_matmul(inputs, nullptr));
  const auto want = run_plain(shape, x, weight, {}), got = out.to_host();
  for (int64_t t = 0; t < shape.tokens; t++) {
    const std::span row(&got[area(t, out_stride)], static_cast<size_t>(out_stride));
    const auto n = static_cast<size_t>(shape.n);
    EXPECT_BITS_EQ(row.first(n), std::span(want).subspan(area(t, shape.n), n), random.describe());
    EXPECT_EQ(std::count(row.begin() + shape.n, row.end(), kUntouched), out_stride - shape.n);
  }
}

}  // namespace
}  // namespace exact::cuda_test
