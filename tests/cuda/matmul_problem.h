// matmul_problem.h owns what the tests of matrix products share: shapes, inputs on the device, and
// what plain_matmul makes of them.
#pragma once

#include <numeric>

#include "kernels/cuda/lt_compare.h"
#include "kernels/cuda/matmul.h"
#include "tests/cuda/device.h"
#include "tests/support/random_data.h"

namespace exact::cuda_test {

inline constexpr uint16_t kUntouched = 0xbeef;

struct Shape {
  int64_t tokens, n, k;
  std::string to_string() const {
    return "(T, N, K) = (" + std::to_string(tokens) + ", " + std::to_string(n) + ", " +
           std::to_string(k) + ")";
  }
};

inline size_t area(int64_t rows, int64_t columns) {
  return static_cast<size_t>(rows * columns);
}

inline cuda::MatmulInputs inputs_of(const Shape& shape, const uint16_t* x, const uint16_t* weight,
                                    const uint16_t* bias, uint16_t* out) {
  return {.x = x,
          .x_stride = shape.k,
          .weight = weight,
          .bias = bias,
          .out = out,
          .out_stride = shape.n,
          .tokens = shape.tokens,
          .out_features = shape.n,
          .in_features = shape.k};
}

// A product's inputs on the device, and what plain_matmul makes of them.
class DeviceProblem {
 public:
  explicit DeviceProblem(const Shape& shape, bool with_bias)
      : shape_(shape),
        with_bias_(with_bias),
        x_(area(shape.tokens, shape.k)),
        weight_(area(shape.n, shape.k)),
        bias_(static_cast<size_t>(shape.n)),
        want_(area(shape.tokens, shape.n)),
        got_(area(shape.tokens, shape.n)),
        counts_(cuda::kDifferenceCounts) {
    EXPECT_TRUE(
        cuda::fill_test_data(x_.data(), shape.tokens, shape.k, cuda::TestSide::x, 4, nullptr));
    EXPECT_TRUE(
        cuda::fill_test_data(weight_.data(), shape.n, shape.k, cuda::TestSide::weight, 5, nullptr));
    EXPECT_TRUE(cuda::fill_test_data(bias_.data(), 1, shape.n, cuda::TestSide::bias, 6, nullptr));
    multiply_plainly();
  }

  // Any 16 bits instead: NaN, infinities, subnormals.
  void use_any_bits() {
    RandomData random;
    const auto x = random.bf16s(DataKind::any_bits, area(shape_.tokens, shape_.k));
    const auto weight = random.bf16s(DataKind::any_bits, area(shape_.n, shape_.k));
    EXPECT_EQ(cudaMemcpy(x_.data(), x.data(), x.size() * 2, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(weight_.data(), weight.data(), weight.size() * 2, cudaMemcpyHostToDevice),
              cudaSuccess);
    multiply_plainly();
  }

  cuda::MatmulInputs inputs() const {
    return inputs_of(shape_, x_.data(), weight_.data(), with_bias_ ? bias_.data() : nullptr,
                     got_.data());
  }
  const Shape& shape() const { return shape_; }

  // How many outputs differ from plain_matmul's; then forgets them, so that none counts twice.
  uint64_t differing() {
    EXPECT_TRUE(cuda::count_differences({want_.data(), shape_.n}, {got_.data(), shape_.n},
                                        shape_.tokens, shape_.n, counts_.data(), nullptr));
    const std::vector<uint32_t> counts = counts_.to_host();
    const auto count = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
    EXPECT_EQ(cudaMemset(got_.data(), 0xee, area(shape_.tokens, shape_.n) * 2), cudaSuccess);
    return count;
  }

 private:
  void multiply_plainly() {
    cuda::MatmulInputs plain = inputs();
    plain.out = want_.data();
    EXPECT_TRUE(cuda::launch_plain_matmul(plain, nullptr));
    EXPECT_EQ(cudaMemset(got_.data(), 0xee, area(shape_.tokens, shape_.n) * 2), cudaSuccess);
  }

  Shape shape_;
  bool with_bias_;
  DeviceVector<uint16_t> x_, weight_, bias_, want_, got_;
  DeviceVector<uint32_t> counts_;
};

}  // namespace exact::cuda_test
