// lt_matmul_test.cu: every algorithm of cuBLASLt that the test of equality admits is the chain of
// rule N1 on other data too, bit for bit as plain_matmul, and so is what LtMatmul chooses, however
// many tokens there are. Some that claim one chain are none (steps of another size): those are
// refused.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "tests/cuda/matmul_problem.h"

namespace exact::cuda_test {
namespace {

class LtMatmul : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
    auto created = cuda::LtMatmul::create(132);
    ASSERT_TRUE(created) << created.status().to_string();
    library_ = std::move(*created);
  }

  static void check_one(void* context, const std::string& name) {
    auto& problem = *static_cast<DeviceProblem*>(context);
    EXPECT_EQ(problem.differing(), 0u) << name << " for " << problem.shape().to_string();
  }

  // Every algorithm that is admitted, on the problem's data; how many there were.
  int check_algorithms(DeviceProblem& problem, int most) {
    const auto tally =
        library_->for_each_algorithm(problem.inputs(), most, nullptr, check_one, &problem);
    EXPECT_TRUE(tally) << tally.status().to_string();
    if (!tally) return 0;
    std::printf("%s: %d algorithms equal, %d refused\n", problem.shape().to_string().c_str(),
                tally->ran, tally->refused);
    return tally->ran;
  }

  // Launches and compares.
  void expect_chain(DeviceProblem& problem) {
    const Status status = library_->launch(problem.inputs(), nullptr);
    ASSERT_TRUE(status) << status.to_string();
    EXPECT_EQ(problem.differing(), 0u) << problem.shape().to_string();
  }

  std::unique_ptr<cuda::LtMatmul> library_;
};

TEST_F(LtMatmul, EveryAdmittedAlgorithmIsTheChain) {
  int ran = 0;
  for (const Shape& shape : {Shape{64, 2048, 2048},
                             {100, 4096, 4096},
                             {128, 4096, 12288},
                             {333, 1536, 1024},
                             {512, 6144, 4096},
                             {1000, 264, 272},
                             {257, 8, 64},
                             {70, 2560, 9728}}) {
    for (const bool with_bias : {false, true}) {
      DeviceProblem problem(shape, with_bias);
      const int now = check_algorithms(problem, 120);
      EXPECT_GT(now, 0) << shape.to_string();
      ran += now;
    }
  }
  EXPECT_GT(ran, 1000);
}

TEST_F(LtMatmul, EveryAdmittedAlgorithmKeepsNanInfinityAndSubnormals) {
  DeviceProblem problem({96, 1024, 512}, true);
  problem.use_any_bits();
  EXPECT_GT(check_algorithms(problem, 200), 50);
}

TEST_F(LtMatmul, WhatIsChosenIsTheChainForEveryCountOfTokens) {
  for (const int64_t tokens :
       {1, 7, 63, 64, 65, 127, 128, 129, 200, 256, 257, 500, 513, 1025, 4096, 4097, 5000}) {
    DeviceProblem problem({tokens, 1536, 512}, tokens % 2 == 0);
    expect_chain(problem);
  }
  int admitted = 0;
  for (const auto& admission : library_->admissions()) admitted += admission.admitted;
  EXPECT_GE(admitted, 16);
  EXPECT_NE(library_->library_version().find("cuBLASLt 13"), std::string::npos);
}

// Rows apart from each other: what lies between them is neither read nor written.
TEST_F(LtMatmul, KeepsToItsStrides) {
  const Shape shape{300, 520, 256};
  DeviceProblem problem(shape, true);
  cuda::MatmulInputs inputs = problem.inputs();
  const int64_t x_stride = shape.k + 64, out_stride = shape.n + 24;
  const DeviceVector<uint16_t> x(
      std::vector<uint16_t>(area(shape.tokens, x_stride), uint16_t{0x7fc0}));
  const DeviceVector<uint16_t> out(
      std::vector<uint16_t>(area(shape.tokens, out_stride), kUntouched));
  const auto row_bytes = [](int64_t elements) { return static_cast<size_t>(elements) * 2; };
  ASSERT_EQ(cudaMemcpy2D(x.data(), row_bytes(x_stride), inputs.x, row_bytes(shape.k),
                         row_bytes(shape.k), static_cast<size_t>(shape.tokens), cudaMemcpyDefault),
            cudaSuccess);
  uint16_t* const contiguous = inputs.out;
  inputs.x = x.data();
  inputs.x_stride = x_stride;
  inputs.out = out.data();
  inputs.out_stride = out_stride;
  const Status status = library_->launch(inputs, nullptr);
  ASSERT_TRUE(status) << status.to_string();
  ASSERT_EQ(cudaMemcpy2D(contiguous, row_bytes(shape.n), out.data(), row_bytes(out_stride),
                         row_bytes(shape.n), static_cast<size_t>(shape.tokens), cudaMemcpyDefault),
            cudaSuccess);
  EXPECT_EQ(problem.differing(), 0u);
  const auto spread = out.to_host();
  for (int64_t row = 0; row < shape.tokens; row++) {
    const auto gap = spread.begin() + row * out_stride + shape.n;
    EXPECT_EQ(std::count(gap, gap + (out_stride - shape.n), kUntouched), out_stride - shape.n);
  }
}

TEST_F(LtMatmul, PreparesOnceAndIsThenRecorded) {
  DeviceProblem problem({150, 1024, 768}, false);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  const auto record = [&](cudaGraph_t* graph) {
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const Status status = library_->launch(problem.inputs(), stream);
    EXPECT_EQ(cudaStreamEndCapture(stream, graph), cudaSuccess);
    return status;
  };
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(record(&graph).code(), Code::invalid);  // nobody prepared
  cudaGraphDestroy(graph);
  ASSERT_TRUE(library_->prepare(problem.inputs(), stream));
  const size_t count = library_->admissions().size();
  EXPECT_GT(count, 0u);
  ASSERT_TRUE(library_->prepare(problem.inputs(), stream));
  EXPECT_EQ(library_->admissions().size(), count);
  ASSERT_TRUE(record(&graph));
  cudaGraphExec_t runnable = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&runnable, graph, 0), cudaSuccess);
  for (int i = 0; i < 2; i++) {
    ASSERT_EQ(cudaGraphLaunch(runnable, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(problem.differing(), 0u);
  }
  cudaGraphExecDestroy(runnable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(LtMatmul, RefusesWhatTheContractDoesNotCover) {
  const auto message = [&](const Shape& shape) {
    return library_->prepare(inputs_of(shape, nullptr, nullptr, nullptr, nullptr), nullptr)
        .message();
  };
  EXPECT_NE(message({4, 12, 64}).find("out_features is 12"), std::string::npos);
  EXPECT_NE(message({4, 16, 40}).find("in_features is 40"), std::string::npos);
  EXPECT_NE(message({0, 16, 64}).find("tokens is 0"), std::string::npos);
}

}  // namespace
}  // namespace exact::cuda_test
