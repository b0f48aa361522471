// special_functions_test.cu: the contract's functions have one set of bits, on the host, on a
// Hopper GPU, and in CUDA's own library.
#include <cmath>
#include <functional>

#include "kernels/contract/special.h"
#include "tests/cuda/device.h"

namespace exact::cuda_test {
namespace {

constexpr size_t kCount = size_t{1} << 22;

// One function three times: host (a scalar call), device by the contract, device by CUDA.
struct Exp {
  static __host__ __device__ float contract_form(float x) { return contract::exp(x); }
  static __device__ float cuda_form(float x) { return expf(x); }
};
struct Log {
  static __host__ __device__ float contract_form(float x) { return contract::log(x); }
  static __device__ float cuda_form(float x) { return logf(x); }
};
struct Sin {
  static __host__ __device__ float contract_form(float x) { return contract::sin(x); }
  static __device__ float cuda_form(float x) { return sinf(x); }
};
struct Cos {
  static __host__ __device__ float contract_form(float x) { return contract::cos(x); }
  static __device__ float cuda_form(float x) { return cosf(x); }
};
// What these two are is the instruction; CUDA has no other name for them.
struct Ex2 {
  static __host__ __device__ float contract_form(float x) { return contract::ex2(x); }
  static __device__ float cuda_form(float x) { return contract::ex2(x); }
};
struct Rsqrt {
  static __host__ __device__ float contract_form(float x) { return contract::rsqrt(x); }
  static __device__ float cuda_form(float x) { return contract::rsqrt(x); }
};

template <class Function>
__global__ void apply(const float* in, float* by_contract, float* by_cuda, size_t count) {
  const size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  if (i >= count) return;
  by_contract[i] = Function::contract_form(in[i]);
  by_cuda[i] = Function::cuda_form(in[i]);
}

// Half are any bits (NaN, infinity, subnormal), half lie in the range that models use.
std::vector<float> random_inputs(const char* name) {
  const contract::HashStream stream(name, kSeed);
  std::vector<float> values(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    values[i] = i % 2 == 0 ? float_from_bits(random_bits(stream, i)) : stream.uniform(i, -110, 90);
  }
  const float edges[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1.0f, -1.0f, 0x1p-149f, 0x1p-126f};
  std::copy(std::begin(edges), std::end(edges), values.begin());
  return values;
}

template <class Function>
void expect_one_set_of_bits(const char* name) {
  const std::string missing = missing_device();
  if (!missing.empty()) GTEST_SKIP() << missing;
  const std::vector<float> inputs = random_inputs(name);
  std::vector<float> host(kCount);
  for (size_t i = 0; i < kCount; ++i) host[i] = Function::contract_form(inputs[i]);
  const DeviceVector<float> in(inputs);
  const DeviceVector<float> by_contract(kCount);
  const DeviceVector<float> by_cuda(kCount);
  apply<Function><<<kCount / 256, 256>>>(in.data(), by_contract.data(), by_cuda.data(), kCount);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(first_difference(host, by_contract.to_host()), "")
      << name << ", contract on the device";
  EXPECT_EQ(first_difference(host, by_cuda.to_host()), "") << name << ", CUDA's own";
}

TEST(SpecialFunctionsOnDevice, ExpHasOneSetOfBits) {
  expect_one_set_of_bits<Exp>("exp");
}
TEST(SpecialFunctionsOnDevice, LogHasOneSetOfBits) {
  expect_one_set_of_bits<Log>("log");
}
TEST(SpecialFunctionsOnDevice, SinHasOneSetOfBits) {
  expect_one_set_of_bits<Sin>("sin");
}
TEST(SpecialFunctionsOnDevice, CosHasOneSetOfBits) {
  expect_one_set_of_bits<Cos>("cos");
}
TEST(SpecialFunctionsOnDevice, Ex2HasOneSetOfBits) {
  expect_one_set_of_bits<Ex2>("ex2");
}
TEST(SpecialFunctionsOnDevice, RsqrtHasOneSetOfBits) {
  expect_one_set_of_bits<Rsqrt>("rsqrt");
}

__global__ void apply_rcp(const float* in, float* out) {
  const size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  out[i] = contract::rcp(in[i]);
}

// Every fraction, at exponents in turn: those of the domain that the contract's rcp claims.
TEST(SpecialFunctionsOnDevice, RcpHasOneSetOfBitsForEveryFraction) {
  const std::string missing = missing_device();
  if (!missing.empty()) GTEST_SKIP() << missing;
  constexpr size_t kFractions = size_t{1} << 23;
  std::vector<float> inputs(kFractions);
  std::vector<float> host(kFractions);
  for (size_t i = 0; i < kFractions; ++i) {
    const auto exponent = static_cast<uint32_t>(1 + i * 97 % 252);
    const auto sign = static_cast<uint32_t>(i % 2);
    inputs[i] = float_from_bits(sign << 31 | exponent << 23 | static_cast<uint32_t>(i));
    host[i] = contract::rcp(inputs[i]);
  }
  const DeviceVector<float> in(inputs);
  const DeviceVector<float> out(kFractions);
  apply_rcp<<<kFractions / 256, 256>>>(in.data(), out.data());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(first_difference(host, out.to_host()), "") << "rcp";
}

__global__ void apply_pow(const float* base, const float* exponent, float* by_contract,
                          float* by_cuda, size_t count) {
  const size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  if (i >= count) return;
  by_contract[i] = contract::pow(base[i], exponent[i]);
  by_cuda[i] = powf(base[i], exponent[i]);
}

// Rotary bases and exponents: the domain that the contract's pow claims.
TEST(SpecialFunctionsOnDevice, PowHasOneSetOfBitsForRotaryBases) {
  const std::string missing = missing_device();
  if (!missing.empty()) GTEST_SKIP() << missing;
  const contract::HashStream stream("pow", kSeed);
  std::vector<float> bases(kCount);
  std::vector<float> exponents(kCount);
  std::vector<float> host(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    bases[i] = stream.uniform(2 * i, i % 2 == 0 ? 100 : 1e5, i % 2 == 0 ? 1e5 : 2e7);
    exponents[i] = stream.uniform(2 * i + 1, 0, 1);
    host[i] = contract::pow(bases[i], exponents[i]);
  }
  const DeviceVector<float> base(bases);
  const DeviceVector<float> exponent(exponents);
  const DeviceVector<float> by_contract(kCount);
  const DeviceVector<float> by_cuda(kCount);
  apply_pow<<<kCount / 256, 256>>>(base.data(), exponent.data(), by_contract.data(), by_cuda.data(),
                                   kCount);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(first_difference(host, by_contract.to_host()), "") << "pow, contract on the device";
  EXPECT_EQ(first_difference(host, by_cuda.to_host()), "") << "pow, CUDA's own";
}

}  // namespace
}  // namespace exact::cuda_test
