// decode_matmul_test.cu: the streaming matmul gives the bits of the plain chain (rule N1), whatever
// its plan: tokens, warps, stages and blocks can't be seen in any output.
#include "kernels/contract/tensor_core.h"
#include "kernels/cuda/decode_matmul.h"
#include "tests/cuda/device.h"

namespace exact::cuda_test {
namespace {

// The truth on the device: one thread an output, the contract's own model of a step.
__global__ void plain_chain(const uint16_t* weight, const uint16_t* x, const uint16_t* bias,
                            uint16_t* out, int tokens, int n_count, int k_count) {
  const int index = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (index >= tokens * n_count) return;
  const int token = index / n_count, n = index % n_count;
  const float sum = contract::tensor_core_chain(x + int64_t{token} * k_count, 1,
                                                weight + int64_t{n} * k_count, 1, k_count, 0.0f);
  out[index] = float_to_bf16(bias == nullptr ? sum : sum + bf16_to_float(bias[n]));
}

enum class Data { model, any_bits, ones };

std::vector<uint16_t> draw(const char* name, size_t size, Data data) {
  const contract::HashStream stream(name, kSeed);
  std::vector<uint16_t> values(size);
  for (size_t i = 0; i < size; i++) {
    values[i] = data == Data::ones       ? uint16_t{0x3f80}
                : data == Data::any_bits ? static_cast<uint16_t>(stream.bits24(i))
                                         : stream.uniform_bf16(i, -2.0, 2.0);
  }
  return values;
}

struct Problem {
  int tokens, n, k;
};

class DecodeMatmul : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
  }

  // How many outputs differ from the plain chain's, for each of the plans.
  static void expect_equal(const Problem& problem, Data data, bool with_bias,
                           const std::vector<cuda::DecodeMatmulPlan>& plans) {
    const auto size = [](int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); };
    const DeviceVector<uint16_t> weight(draw("weight", size(problem.n, problem.k), data));
    const DeviceVector<uint16_t> x(draw("x", size(problem.tokens, problem.k), data));
    const DeviceVector<uint16_t> bias(draw("bias", static_cast<size_t>(problem.n), Data::model));
    const uint16_t* bias_data = with_bias ? bias.data() : nullptr;
    DeviceVector<uint16_t> want(size(problem.tokens, problem.n));
    const int outputs = problem.tokens * problem.n;
    plain_chain<<<(outputs + 127) / 128, 128>>>(weight.data(), x.data(), bias_data, want.data(),
                                                problem.tokens, problem.n, problem.k);
    for (const cuda::DecodeMatmulPlan& plan : plans) {
      const DeviceVector<uint16_t> got(
          std::vector<uint16_t>(size(problem.tokens, problem.n), uint16_t{0xffff}));
      const Status status = cuda::launch_decode_matmul(plan, weight.data(), x.data(), problem.k,
                                                       bias_data, got.data(), problem.n, nullptr);
      ASSERT_TRUE(status.is_ok()) << status.to_string();
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << plan.to_string();
      const auto wanted = want.to_host(), given = got.to_host();
      for (size_t i = 0; i < wanted.size(); i++) {
        ASSERT_EQ(wanted[i], given[i])
            << plan.to_string() << ", seed " << kSeed << ", first differing output " << i;
      }
    }
  }

  static cuda::DecodeMatmulPlan plan_of(const Problem& problem, int multiprocessors = 132) {
    auto plan = cuda::plan_decode_matmul(problem.tokens, problem.n, problem.k, multiprocessors);
    EXPECT_TRUE(plan.is_ok()) << plan.status().to_string();
    return *plan;
  }
};

TEST_F(DecodeMatmul, EqualsThePlainChainForEveryCountOfTokens) {
  for (const int tokens : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64}) {
    const Problem problem{tokens, 520, 448};
    expect_equal(problem, Data::model, tokens % 2 == 0, {plan_of(problem)});
  }
}

TEST_F(DecodeMatmul, EqualsThePlainChainForSmallAndOddShapes) {
  for (const auto& [n, k] : {std::pair{8, 64}, {24, 64}, {1000, 192}, {4096, 128}, {96, 12288}}) {
    for (const int tokens : {1, 13, 64}) {
      const Problem problem{tokens, n, k};
      expect_equal(problem, Data::model, true, {plan_of(problem)});
    }
  }
}

// NaN, infinities, subnormals, and the K tail that all-ones shows (trap 17).
TEST_F(DecodeMatmul, EqualsThePlainChainOnAnyBitsAndOnOnes) {
  for (const int tokens : {1, 16, 64}) {
    const Problem problem{tokens, 264, 320};
    expect_equal(problem, Data::any_bits, false, {plan_of(problem)});
    expect_equal(problem, Data::ones, false, {plan_of(problem)});
  }
}

constexpr int kMaxShared = 227 * 1024;

// Every size of stages and rings, and every moment for the next kernel, that fits.
void add_ring_sizes(const cuda::DecodeMatmulPlan& form, int multiprocessors,
                    std::vector<cuda::DecodeMatmulPlan>& plans) {
  cuda::DecodeMatmulPlan plan = form;
  const bool warp_form = plan.form == cuda::DecodeMatmulPlan::Form::warp;
  for (const int stage_blocks : {1, 2, 3, 4, 8}) {
    for (const int stages : {2, 3, 30}) {
      for (const int x_stages : warp_form ? std::vector{0} : std::vector{2, 5, 30}) {
        plan.stage_blocks = stage_blocks;
        plan.stages = stages;
        plan.x_stages = x_stages;
        plan.begin_next = (stages + stage_blocks) % 3 * 7;
        plan.size_for(multiprocessors);
        if (!warp_form && stage_blocks == 1 && stages == 2) continue;
        if (plan.shared_bytes <= kMaxShared) plans.push_back(plan);
      }
    }
  }
}

TEST_F(DecodeMatmul, NoPlanOfTheWarpFormChangesABit) {
  for (const int tokens : {1, 8, 16, 64}) {
    const Problem problem{tokens, 2056, 1536};
    std::vector<cuda::DecodeMatmulPlan> plans;
    for (const int multiprocessors : {1, 3, 132, 1000}) {
      cuda::DecodeMatmulPlan plan = plan_of(problem, multiprocessors);
      plan.form = cuda::DecodeMatmulPlan::Form::warp;
      plan.cluster = 1;
      plan.token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8;
      for (const int rows : {16, 48, 192}) {
        plan.rows = rows;
        add_ring_sizes(plan, multiprocessors, plans);
      }
    }
    expect_equal(problem, Data::model, true, plans);
  }
}

TEST_F(DecodeMatmul, NoPlanOfTheWarpgroupFormChangesABit) {
  for (const int tokens : {1, 13, 40, 64}) {
    const Problem problem{tokens, 1032, 1600};
    std::vector<cuda::DecodeMatmulPlan> plans;
    for (const int rows :
         {8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 168, 192, 224, 256}) {
      for (const int cluster : {1, 2, 4}) {
        cuda::DecodeMatmulPlan plan = plan_of(problem);
        plan.form = cuda::DecodeMatmulPlan::Form::warpgroup;
        plan.token_tiles = (tokens + 7) / 8;
        plan.rows = rows;
        plan.cluster = cluster;
        plan.x_stage_blocks = 1 << rows / 8 % 4;
        add_ring_sizes(plan, rows % 16 == 0 ? 132 : 8, plans);
      }
    }
    expect_equal(problem, Data::model, tokens != 13, plans);
  }
}

TEST(DecodeMatmulPlan, RefusesWhatItCantComputeByName) {
  const auto refusal = [](int tokens, int64_t n, int64_t k) {
    return cuda::plan_decode_matmul(tokens, n, k, 132).status().message();
  };
  EXPECT_NE(refusal(0, 64, 64).find("tokens is 0"), std::string::npos);
  EXPECT_NE(refusal(65, 64, 64).find("tokens is 65"), std::string::npos);
  EXPECT_NE(refusal(1, 12, 64).find("out_features is 12"), std::string::npos);
  EXPECT_NE(refusal(1, 64, 48).find("in_features is 48"), std::string::npos);
  EXPECT_EQ(refusal(64, 8, 64), "");
}

}  // namespace
}  // namespace exact::cuda_test
