// plain_attention: out = softmax(q k^T * c) v, causal, as rule N5 writes it               rule N5
// shapes  query, out (rows, H * E) bf16 with strides; keys and values in pages; E of the contract
// order   one row and head a block: scores by one chain a key, softmax by one thread, one chain a
//         column of O over the keys that the row sees
// rounds  where contract/attention.h says so; the chains are the contract's model of a step
// launch  a block of 128 threads a (row, query head); nothing is shared between blocks. It is slow:
//         the truth beside which the fast kernels are held, and what runs where none covers.
#include <cuda_runtime.h>

#include <string>

#include "kernels/contract/attention.h"
#include "kernels/contract/shape.h"
#include "kernels/contract/tensor_core.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxHeadWidth = 256;

struct Shared {
  uint16_t query[kMaxHeadWidth];
  float scores[contract::kMaxKeyBlock];
  uint16_t probabilities[contract::kMaxKeyBlock];
  contract::SoftmaxRow row;
  float factor;
};

// The row's page table and head; a key's slot is found page by page.
struct HeadPages {
  LayerPages pages;
  const int32_t* table;
  int head;

  __device__ uint16_t key(int position, int column) const {
    const int block = column / kColumnBlock;
    return pages.keys(table[position / pages.page_size], head,
                      block)[swizzled(position % pages.page_size, column % kColumnBlock)];
  }
  __device__ uint16_t value(int position, int column) const {
    const int block = column / kColumnBlock;
    return pages.values(table[position / pages.page_size], head,
                        block)[swizzled(position % pages.page_size, column % kColumnBlock)];
  }
};

// The chain of query and one key: sixteen columns of the key at a time.
__device__ float score(const uint16_t* query, const HeadPages& from, int position, int width) {
  float sum = 0.0f;
  for (int k = 0; k < width; k += contract::kStepWidth) {
    uint16_t key[contract::kStepWidth];
    for (int i = 0; i < contract::kStepWidth; i++) key[i] = from.key(position, k + i);
    sum = contract::tensor_core_step(query + k, 1, key, 1, sum);
  }
  return sum;
}

// The chain of one column of O over the first `count` keys of a block.
__device__ float add_values(float sum, const uint16_t* probabilities, const HeadPages& from,
                            int first_key, int count, int column) {
  for (int k = 0; k < count; k += contract::kStepWidth) {
    const int left = min(count - k, contract::kStepWidth);
    uint16_t value[contract::kStepWidth];
    for (int i = 0; i < left; i++) value[i] = from.value(first_key + k + i, column);
    sum = contract::tensor_core_partial_step(probabilities + k, 1, value, 1, left, sum);
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads) plain_attention(const AttentionInputs inputs) {
  __shared__ Shared shared;
  wait_for_earlier_kernels();
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  const int sequence = inputs.step.row_sequence[row];
  if (sequence < 0) return;
  const int width = inputs.pages.head_width;
  const int group = inputs.query_heads / inputs.pages.kv_heads;
  const HeadPages from{inputs.pages, inputs.step.pages + inputs.step.sequences[sequence].first_page,
                       head / group};
  const int position = inputs.step.positions[row];
  const int block = contract::key_block(width);
  const float c = contract::score_scale(width);
  const uint16_t* query = inputs.query + row * inputs.query_stride + head * width;
  for (int i = thread; i < width; i += kThreads) shared.query[i] = query[i];
  if (thread == 0) shared.row = contract::new_softmax_row();
  float sums[kMaxHeadWidth / kThreads] = {};
  for (int first_key = position / block * block; first_key >= 0; first_key -= block) {
    __syncthreads();
    for (int i = thread; i < block; i += kThreads) {
      shared.scores[i] = first_key + i > position ? float_from_bits(0xff800000u)
                                                  : score(shared.query, from, first_key + i, width);
    }
    __syncthreads();
    if (thread == 0) {
      contract::SoftmaxRow state = shared.row;
      shared.factor = contract::softmax_block(state, shared.scores, block, c, shared.probabilities);
      shared.row = state;
    }
    __syncthreads();
    // Keys after the row's position take no part, as in the reference.
    const int seen = min(block, position + 1 - first_key);
    for (int i = 0; i < kMaxHeadWidth / kThreads; i++) {
      const int column = thread + i * kThreads;
      if (column >= width) break;
      sums[i] =
          add_values(sums[i] * shared.factor, shared.probabilities, from, first_key, seen, column);
    }
  }
  const float inverse = 1.0f / contract::softmax_sum(shared.row.lane_sums);
  uint16_t* out = inputs.out + row * inputs.out_stride + head * width;
  for (int i = 0; i < kMaxHeadWidth / kThreads; i++) {
    const int column = thread + i * kThreads;
    if (column < width) out[column] = float_to_bf16(sums[i] * inverse);
  }
}

}  // namespace

Status launch_plain_attention(const AttentionInputs& inputs, cudaStream_t stream) {
  if (contract::key_block(inputs.pages.head_width) == 0) {
    return Status(Code::unsupported, "plain_attention: the head width is " +
                                         std::to_string(inputs.pages.head_width) +
                                         "; it must be 32, 64, 80, 96, 128 or 256");
  }
  if (inputs.step.rows == 0) return {};
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(inputs.step.rows), static_cast<unsigned>(inputs.query_heads));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, plain_attention, inputs);
  if (error == cudaSuccess) return {};
  return Status(Code::device, std::string("plain_attention: ") + cudaGetErrorString(error));
}

}  // namespace exact::cuda
