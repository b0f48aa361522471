// matmul.h owns rule N1 on a GPU for any number of rows: which kernel multiplies, and the test that
// each had to pass. out[t, n] = bf16(chain(x[t, :], weight[n, :]) + bias[n]); K is never split.
//
//   few rows      decode_matmul, the project's own: weights streamed once
//   more rows     cuBLASLt, algorithms without split K and without a reduction; each admitted for a
//                 (N, K) only after its output equalled plain_matmul's on every element
//   odd shapes    plain_matmul: the chain as it is written, any shape of the contract
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/result.h"

namespace exact::cuda {

// x (tokens, K) with x_stride elements from row to row, weight (N, K) contiguous, bias (N) or null,
// out (tokens, N) with out_stride. bf16 device memory; aligned to 16 bytes, strides multiples of 8.
struct MatmulInputs {
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;
  const uint16_t* weight = nullptr;
  const uint16_t* bias = nullptr;
  uint16_t* out = nullptr;
  int64_t out_stride = 0;
  int64_t tokens = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
};

// unsupported: names the dimension that no kernel here takes.
Status check_matmul(const MatmulInputs& inputs);

// The chain as rule N1 writes it, by mma.sync; N % 8 == 0, K % 16 == 0. The others are held to it.
Status launch_plain_matmul(const MatmulInputs& inputs, cudaStream_t stream);

// cuBLASLt, restricted. Not thread-safe: one for each stream.
class LtMatmul {
 public:
  struct Admission {
    int64_t tokens = 0, out_features = 0, in_features = 0;
    bool bias = false;
    std::string algorithm;  // tile, stages, cluster, ...
    bool admitted = false;  // false: its bits differed, it is never used for this (N, K)
  };

  // unsupported: a cuBLASLt older than the one the contract was measured with.
  static Result<std::unique_ptr<LtMatmul>> create(int multiprocessors);
  virtual ~LtMatmul() = default;

  // The first call for a shape finds an algorithm, tests it on random data of that shape, and
  // remembers it; it may allocate and wait, so it can't be recorded: call prepare() before.
  virtual Status prepare(const MatmulInputs& inputs, cudaStream_t stream) = 0;
  // What prepare() chose; prepares when nobody has. Where there is no memory for that,
  // plain_matmul.
  virtual Status launch(const MatmulInputs& inputs, cudaStream_t stream) = 0;
  // All algorithms the library offers for a shape under the restrictions, at most `most`: those
  // that the test of equality admits are run in turn, and each is checked. For the test that no
  // choice changes bits.
  struct Tally {
    int ran = 0, refused = 0;
  };
  virtual Result<Tally> for_each_algorithm(const MatmulInputs& inputs, int most,
                                           cudaStream_t stream,
                                           void (*check)(void* context, const std::string& name),
                                           void* context) = 0;
  virtual std::vector<Admission> admissions() const = 0;
  virtual std::string library_version() const = 0;
};

}  // namespace exact::cuda
