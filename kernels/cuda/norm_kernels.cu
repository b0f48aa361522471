// rms_norm        out = norm(x) * weight                                             rules N2, N3
// add_rms_norm    x = bf16(x + y), then the same of the new x
//   hf      r = rsqrt(sum(x^2) * fp32(1/H) + eps);  out = bf16(w * bf16(x * r))
//   fused   r = rsqrt(sum(x^2) / H + eps);          out = bf16(w * (r * x))
// shapes  (rows, H) bf16 with a stride each; H % 8 == 0, 32 <= H <= 32768
// order   hf: H < 128: 32 lanes take l, l + 32, ... into four accumulators in turn; H < 8161: lane
//         l takes groups of four l, l + 32, ..., an accumulator a position; from 8161 on 512 lanes
//         do. ((a0+a1)+a2)+a3, halves in each 32 lanes, halves over the warps.
//         fused: 128 lanes, groups of four, one ascending sum; halves in each warp; off = 2, 1
// rounds  where bf16(...) is written; squares of bf16 are exact
// launch  a block a row. Its threads load 16 bytes each at a time and keep them in registers; a
//         copy in shared memory is what the lanes of the rule sum. In the order of four
//         accumulators by 32 lanes, 128 threads take a chain each.
#include "kernels/base/check.h"
#include "kernels/contract/norm.h"
#include "kernels/contract/shape.h"
#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row_kernels.h"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxVectors = 4;  // of a thread
constexpr int kMaxThreads = 1024;
constexpr int kMaxWidth = kMaxVectors * kMaxThreads * kVector;

enum class SumOrder : uint8_t { narrow, lanes32, lanes512, fused };

__device__ __forceinline__ float square(uint16_t x) {
  const float value = bf16_to_float(x);
  return value * value;
}

// Halves `count` lanes, a power of two; every lane gets the sum.
__device__ __forceinline__ float halve_lanes(float sum, int count) {
  for (int off = count / 2; off > 0; off /= 2) sum = sum + __shfl_down_sync(kAllLanes, sum, off);
  return __shfl_sync(kAllLanes, sum, 0);
}

// Each warp sums the whole row.
__device__ float sum_narrow(const uint16_t* row, int width, int lane) {
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < 4; n++) {
    if (lane + 32 * n < width) sums[n] = square(row[lane + 32 * n]);
  }
  return halve_lanes(((sums[0] + sums[1]) + sums[2]) + sums[3], 32);
}

// Thread 4 l + j of 128: accumulator j of lane l.
__device__ float sum_lanes32(const uint16_t* row, int width, int thread, float* partial) {
  if (thread < 128) {
    float sum = 0.0f;
#pragma unroll 16
    for (int i = thread; i < width; i += 128) sum = sum + square(row[i]);
    const float a1 = __shfl_down_sync(kAllLanes, sum, 1);
    const float a2 = __shfl_down_sync(kAllLanes, sum, 2);
    const float a3 = __shfl_down_sync(kAllLanes, sum, 3);
    if (thread % 4 == 0) partial[thread / 4] = ((sum + a1) + a2) + a3;
  }
  __syncthreads();
  return halve_lanes(partial[thread % 32], 32);
}

__device__ float sum_lanes512(const uint16_t* row, int width, int thread, float* partial) {
  if (thread < 512) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int i = thread * 4; i < width; i += 4 * 512) {
      const uint2 group = *reinterpret_cast<const uint2*>(row + i);
      const float x[4] = {low_half(group.x), high_half(group.x), low_half(group.y),
                          high_half(group.y)};
#pragma unroll
      for (int j = 0; j < 4; j++) sums[j] = sums[j] + x[j] * x[j];
    }
    const float sum = halve_lanes(((sums[0] + sums[1]) + sums[2]) + sums[3], 32);
    if (thread % 32 == 0) partial[thread / 32] = sum;
  }
  __syncthreads();
  return halve_lanes(partial[thread % 16], 16);
}

__device__ float sum_fused(const uint16_t* row, int width, int thread, float* partial) {
  if (thread < 128) {
    float sum = 0.0f;
#pragma unroll 4
    for (int i = thread * 4; i < width; i += 4 * 128) {
      const uint2 group = *reinterpret_cast<const uint2*>(row + i);
      const float x[4] = {low_half(group.x), high_half(group.x), low_half(group.y),
                          high_half(group.y)};
#pragma unroll
      for (int j = 0; j < 4; j++) sum = contract::fma_rn(x[j], x[j], sum);
    }
    sum = halve_lanes(sum, 32);
    if (thread % 32 == 0) partial[thread / 32] = sum;
  }
  __syncthreads();
  return (partial[0] + partial[2]) + (partial[1] + partial[3]);
}

__device__ float mean_square(SumOrder order, const uint16_t* row, int width, int thread,
                             float* partial) {
  const auto fp32_width = static_cast<float>(width);
  switch (order) {
    case SumOrder::narrow:
      return sum_narrow(row, width, thread % 32) * (1.0f / fp32_width);
    case SumOrder::lanes32:
      return sum_lanes32(row, width, thread, partial) * (1.0f / fp32_width);
    case SumOrder::lanes512:
      return sum_lanes512(row, width, thread, partial) * (1.0f / fp32_width);
    default:
      return sum_fused(row, width, thread, partial) / fp32_width;
  }
}

struct NormInputs {
  Rows x;       // written where y is given
  ConstRows y;  // or null
  const uint16_t* weight;
  Rows out;
  float epsilon;
  int width;
  SumOrder order;
};

template <bool kAdd, int kVectors>
__global__ void __launch_bounds__(kMaxThreads) rms_norm(const NormInputs in) {
  extern __shared__ uint4 shared_row[];
  __shared__ float partial[32];
  const auto thread = static_cast<int>(threadIdx.x);
  const auto threads = static_cast<int>(blockDim.x);
  const int64_t row = blockIdx.x;
  const auto column = [&](int v) { return (v * threads + thread) * kVector; };
  let_next_kernel_begin();
  uint4 weight[kVectors];  // no kernel writes weights: they may come early
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    if (column(v) < in.width) weight[v] = load8(in.weight + column(v));
  }
  wait_for_earlier_kernels();
  uint16_t* const x_row = in.x.data + row * in.x.stride;
  const uint16_t* const y_row = in.y.data + row * in.y.stride;
  uint4 x[kVectors], y[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    if (column(v) >= in.width) continue;
    x[v] = load8(x_row + column(v));
    if constexpr (kAdd) y[v] = load8(y_row + column(v));
  }
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    if (column(v) >= in.width) continue;
    if constexpr (kAdd) {
      x[v] = add8(x[v], y[v]);
      store8(x_row + column(v), x[v]);
    }
    shared_row[column(v) / kVector] = x[v];
  }
  __syncthreads();
  const float factor =
      contract::rms_factor(mean_square(in.order, reinterpret_cast<const uint16_t*>(shared_row),
                                       in.width, thread, partial),
                           in.epsilon);
  const bool fused = in.order == SumOrder::fused;
  uint16_t* const out_row = in.out.data + row * in.out.stride;
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    if (column(v) >= in.width) continue;
    if (fused) {
      store8(out_row + column(v),
             map8([=](float a, float w) { return w * (factor * a); }, x[v], weight[v]));
    } else {
      const uint4 scaled = map8([=](float a) { return a * factor; }, x[v]);
      store8(out_row + column(v), multiply8(weight[v], scaled));
    }
  }
}

SumOrder sum_order(NormForm form, int64_t width) {
  if (form == NormForm::fused) return SumOrder::fused;
  const contract::RowSumOrder order = contract::row_sum_order(width, contract::kManyRows);
  EXACT_CHECK(order.warp_width == 32 && (order.threads == 32 || order.threads == 512),
              "rms_norm: the orders of the widths of the contract are these two");
  if (!order.grouped) return SumOrder::narrow;
  return order.threads == 512 ? SumOrder::lanes512 : SumOrder::lanes32;
}

bool is_aligned(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % kVector == 0;
}

// Few rows: as many threads as a row has vectors, for the shortest way through. Many: blocks of 4
// vectors a thread, of which more fit a multiprocessor.
int block_threads(int64_t rows, int64_t width, SumOrder order) {
  constexpr int64_t kFewRows = 264;
  const auto vectors = static_cast<int>(width / kVector);
  const int least = order == SumOrder::lanes512 ? 512 : 128;
  const int wanted = rows <= kFewRows ? vectors : (vectors + kMaxVectors - 1) / kMaxVectors;
  const int enough = (vectors + kMaxVectors - 1) / kMaxVectors;
  const int most = enough > 512 ? kMaxThreads : 512;
  const int threads = (wanted + 31) / 32 * 32;
  return threads < least ? least : threads > most ? most : threads;
}

template <bool kAdd>
Status launch(const char* name, const NormInputs& in, int64_t rows, cudaStream_t stream) {
  const int threads = block_threads(rows, in.width, in.order);
  const int vectors = (in.width / kVector + threads - 1) / threads;
  const LaunchShape shape{.blocks = rows, .threads = threads, .shared_bytes = in.width * 2};
  if (vectors == 1) return launch_overlapped(name, rms_norm<kAdd, 1>, shape, stream, in);
  if (vectors == 2) return launch_overlapped(name, rms_norm<kAdd, 2>, shape, stream, in);
  return launch_overlapped(name, rms_norm<kAdd, kMaxVectors>, shape, stream, in);
}

Status check_width(const char* name, int64_t width) {
  EXACT_RETURN_IF_ERROR(contract::check_norm_width(width));
  if (width <= kMaxWidth) return {};
  return Status(Code::unsupported, std::string(name) + ": norm width is " + std::to_string(width) +
                                       "; this kernel takes at most " + std::to_string(kMaxWidth));
}

}  // namespace

Status launch_rms_norm(ConstRows x, const uint16_t* weight, float epsilon, NormForm form, Rows out,
                       int64_t rows, int64_t width, cudaStream_t stream) {
  EXACT_RETURN_IF_ERROR(check_width("rms_norm", width));
  EXACT_CHECK(
      is_aligned(x.data, x.stride) && is_aligned(out.data, out.stride) && is_aligned(weight, width),
      "rms_norm: alignment");
  // Without y, x is not written.
  const NormInputs in{{const_cast<uint16_t*>(x.data), x.stride},
                      {},
                      weight,
                      out,
                      epsilon,
                      static_cast<int>(width),
                      sum_order(form, width)};
  return launch<false>("rms_norm", in, rows, stream);
}

Status launch_add_rms_norm(Rows x, ConstRows y, const uint16_t* weight, float epsilon,
                           NormForm form, Rows out, int64_t rows, int64_t width,
                           cudaStream_t stream) {
  EXACT_RETURN_IF_ERROR(check_width("add_rms_norm", width));
  EXACT_CHECK(is_aligned(x.data, x.stride) && is_aligned(y.data, y.stride) &&
                  is_aligned(out.data, out.stride) && is_aligned(weight, width),
              "add_rms_norm: alignment");
  const NormInputs in{x, y, weight, out, epsilon, static_cast<int>(width), sum_order(form, width)};
  return launch<true>("add_rms_norm", in, rows, stream);
}

}  // namespace exact::cuda
