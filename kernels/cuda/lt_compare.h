// lt_compare.h owns what the admission of a library's algorithm needs on the GPU: test data that
// shows another order of addition, and the count of outputs that differ.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/result.h"

namespace exact::cuda {

// Data on which another order of addition, another width of a step or another rounding is seen in
// the bf16 of the sum. The weights are the same read from either end of k, and x is one of these by
// its row:
//   most rows     the negative of itself read from the other end: a sum that grows and comes back
//   to
//                 zero, so that what is left is every rounding on the way
//   row 2, 6, ..  any values: a part of k left out or added twice is seen
//   row 3, ..     neighbours that cancel but for a last bit, where the weights' neighbours are
//   alike row 7, ..     products around the smallest normal, sums below it row 37, 38    of each
//   64: an infinity among the values; two that make a NaN
// The magnitudes of x and of the weights are 2^-9 to 2^2, so that small products lose bits beside
// large ones. A bias is zero, tiny or like a weight.
enum class TestSide : uint8_t { x, weight, bias };

// data (rows, columns), contiguous, from a hash of (seed, row, column); columns even.
Status fill_test_data(uint16_t* data, int64_t rows, int64_t columns, TestSide side, uint32_t seed,
                      cudaStream_t stream);

// How many of the (rows, columns) elements have other bits is the sum of the counts, which are
// device memory: each is set. Strides count elements.
inline constexpr int kDifferenceCounts = 1024;
struct Compared {
  const uint16_t* data = nullptr;
  int64_t stride = 0;
};
Status count_differences(Compared want, Compared got, int64_t rows, int64_t columns,
                         uint32_t* counts, cudaStream_t stream);

}  // namespace exact::cuda
