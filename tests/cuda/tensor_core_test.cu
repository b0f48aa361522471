// tensor_core_test.cu: rule N1's model of a chain of k16 steps is what a Hopper tensor core
// computes, and is the same function on host and device.
#include "kernels/contract/tensor_core.h"
#include "tests/cuda/device.h"

namespace exact::cuda_test {
namespace {

constexpr int kTiles = 1024;
constexpr int kRows = 16;
constexpr int kColumns = 8;
constexpr int kDepth = 64;

// One warp a tile: a (16, K) and b (8, K), row-major bf16; out (16, 8) fp32. mma.sync m16n8k16.
__global__ void chain_by_tensor_core(const uint16_t* a, const uint16_t* b, float* out) {
  const int group = static_cast<int>(threadIdx.x) / 4;
  const int pair = static_cast<int>(threadIdx.x) % 4 * 2;
  a += blockIdx.x * kRows * kDepth;
  b += blockIdx.x * kColumns * kDepth;
  out += blockIdx.x * kRows * kColumns;
  const auto two = [](const uint16_t* p) { return *reinterpret_cast<const uint32_t*>(p); };
  float c0 = 0, c1 = 0, c2 = 0, c3 = 0;
  for (int k = 0; k < kDepth; k += 16) {
    const uint32_t a0 = two(a + group * kDepth + k + pair);
    const uint32_t a1 = two(a + (group + 8) * kDepth + k + pair);
    const uint32_t a2 = two(a + group * kDepth + k + pair + 8);
    const uint32_t a3 = two(a + (group + 8) * kDepth + k + pair + 8);
    const uint32_t b0 = two(b + group * kDepth + k + pair);
    const uint32_t b1 = two(b + group * kDepth + k + pair + 8);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
  out[group * kColumns + pair] = c0;
  out[group * kColumns + pair + 1] = c1;
  out[(group + 8) * kColumns + pair] = c2;
  out[(group + 8) * kColumns + pair + 1] = c3;
}

// The model, one thread an output.
__global__ void chain_by_contract(const uint16_t* a, const uint16_t* b, float* out) {
  const int row = static_cast<int>(threadIdx.x) / kColumns;
  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const uint16_t* x = a + (blockIdx.x * kRows + row) * kDepth;
  const uint16_t* y = b + (blockIdx.x * kColumns + column) * kDepth;
  out[blockIdx.x * kRows * kColumns + threadIdx.x] =
      contract::tensor_core_chain(x, 1, y, 1, kDepth, 0.0f);
}

std::vector<float> chain_on_host(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b) {
  std::vector<float> out;
  for (int tile = 0; tile < kTiles; ++tile) {
    for (int i = 0; i < kRows * kColumns; ++i) {
      const uint16_t* x = a.data() + (tile * kRows + i / kColumns) * kDepth;
      const uint16_t* y = b.data() + (tile * kColumns + i % kColumns) * kDepth;
      out.push_back(contract::tensor_core_chain(x, 1, y, 1, kDepth, 0.0f));
    }
  }
  return out;
}

using Draw = uint16_t (*)(const contract::HashStream&, uint64_t);

void expect_one_set_of_bits(const char* name, Draw draw) {
  const std::string missing = missing_device();
  if (!missing.empty()) GTEST_SKIP() << missing;
  const contract::HashStream stream(name, kSeed);
  std::vector<uint16_t> a(size_t{kTiles} * kRows * kDepth);
  std::vector<uint16_t> b(size_t{kTiles} * kColumns * kDepth);
  for (size_t i = 0; i < a.size(); ++i) a[i] = draw(stream, i);
  for (size_t i = 0; i < b.size(); ++i) b[i] = draw(stream, a.size() + i);
  const std::vector<float> host = chain_on_host(a, b);
  const DeviceVector<uint16_t> device_a(a);
  const DeviceVector<uint16_t> device_b(b);
  const DeviceVector<float> by_core(host.size());
  const DeviceVector<float> by_contract(host.size());
  chain_by_tensor_core<<<kTiles, 32>>>(device_a.data(), device_b.data(), by_core.data());
  chain_by_contract<<<kTiles, kRows * kColumns>>>(device_a.data(), device_b.data(),
                                                  by_contract.data());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(first_difference(host, by_core.to_host()), "") << name << ", the tensor core";
  EXPECT_EQ(first_difference(host, by_contract.to_host()), "") << name << ", model on the device";
}

TEST(TensorCoreOnDevice, ChainsOfOrdinaryValuesHaveOneSetOfBits) {
  expect_one_set_of_bits("ordinary", [](const contract::HashStream& stream, uint64_t i) {
    return stream.uniform_bf16(i, -2, 2);
  });
}

TEST(TensorCoreOnDevice, ChainsOfWideExponentsHaveOneSetOfBits) {
  expect_one_set_of_bits("wide", [](const contract::HashStream& stream, uint64_t i) {
    const uint32_t bits = stream.bits24(i);
    const uint32_t exponent = 97 + (bits >> 8) % 60;
    return static_cast<uint16_t>((bits & 0x807f) | exponent << 7);
  });
}

// NaN, infinity and subnormals are as common as their patterns.
TEST(TensorCoreOnDevice, ChainsOfAnyBitsHaveOneSetOfBits) {
  expect_one_set_of_bits("any bits", [](const contract::HashStream& stream, uint64_t i) {
    return static_cast<uint16_t>(stream.bits24(i));
  });
}

TEST(TensorCoreOnDevice, ChainsThatCancelHaveOneSetOfBits) {
  expect_one_set_of_bits("cancel", [](const contract::HashStream& stream, uint64_t i) {
    const uint16_t magnitude = static_cast<uint16_t>(0x3f80 | (stream.bits24(i / 2) & 3));
    return static_cast<uint16_t>(magnitude | ((i & 1) != 0 ? 0x8000 : 0));
  });
}

}  // namespace
}  // namespace exact::cuda_test
