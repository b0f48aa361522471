// device.h owns what the device tests share: whether there is a GPU whose bits the contract
// describes, memory on it, and inputs from a printed seed.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/hash_init.h"

namespace exact::cuda_test {

inline constexpr uint64_t kSeed = 20250101;

// Empty on a Hopper GPU; else the reason why there is nothing to compare.
inline std::string missing_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no GPU: ") + cudaGetErrorString(error);
  if (count == 0) return "no GPU";
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return "the GPU does not answer";
  if (properties.major == 9 && properties.minor == 0) return "";
  return std::string(properties.name) + " is not sm_90, whose arithmetic the contract is";
}

// A vector in device memory, copied both ways.
template <class T>
class DeviceVector {
 public:
  explicit DeviceVector(size_t size) : size_(size) {
    EXPECT_EQ(cudaMalloc(&data_, size * sizeof(T)), cudaSuccess);
  }
  explicit DeviceVector(const std::vector<T>& host) : DeviceVector(host.size()) {
    EXPECT_EQ(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~DeviceVector() { cudaFree(data_); }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;

  T* data() const { return data_; }
  std::vector<T> to_host() const {
    std::vector<T> host(size_);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

inline uint32_t random_bits(const contract::HashStream& stream, uint64_t i) {
  return stream.bits24(2 * i) << 8 ^ stream.bits24(2 * i + 1);
}

inline std::string hex(uint32_t bits) {
  char text[16];
  std::snprintf(text, sizeof text, "%08x", bits);
  return text;
}

// The first difference with both values and how many there are; empty when all are equal.
inline std::string first_difference(const std::vector<float>& want, const std::vector<float>& got) {
  size_t differing = 0;
  std::string first;
  for (size_t i = 0; i < want.size(); ++i) {
    if (float_bits(want[i]) == float_bits(got[i])) continue;
    if (differing++ == 0) {
      first = "index " + std::to_string(i) + ": want " + hex(float_bits(want[i])) + ", got " +
              hex(float_bits(got[i]));
    }
  }
  if (differing == 0) return "";
  return std::to_string(differing) + " of " + std::to_string(want.size()) + " differ; first at " +
         first + "; seed " + std::to_string(kSeed);
}

}  // namespace exact::cuda_test
