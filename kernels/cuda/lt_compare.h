// lt_compare.h owns what the admission of a library's algorithm needs on the GPU: test data that
// shows another order of addition, and the count of outputs that differ.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/result.h"

namespace exact::cuda {

// Which side of the product: pairs of neighbours along k nearly cancel in it, as the second of each
// pair is negated on one side alone.
enum class TestSide : uint8_t { x, weight };

// data[i] = bf16 of magnitude 2^-4 to 2^1, from a hash of (seed, i). All finite.
Status fill_test_data(uint16_t* data, int64_t count, TestSide side, uint32_t seed,
                      cudaStream_t stream);

// *differing += how many of the (rows, columns) elements have other bits. `differing` is device
// memory; strides count elements.
struct Compared {
  const uint16_t* data = nullptr;
  int64_t stride = 0;
};
Status count_differences(Compared want, Compared got, int64_t rows, int64_t columns,
                         uint64_t* differing, cudaStream_t stream);

}  // namespace exact::cuda
