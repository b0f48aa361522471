// embed, gather_rows   out[i, :] = table[ids[i], :]
// add                  x = bf16(x + y)                                                   rule N6
// silu_mul             out = bf16(bf16(g / (1 + expf(-g))) * up)                         rule N6
// shapes  (rows, width) bf16 with a stride each; width % 8 == 0
// order   every element is on its own
// rounds  where bf16(...) is written
// launch  a thread takes 8 columns of one row; a row is one or more blocks of at most 256 threads
#include "kernels/base/check.h"
#include "kernels/contract/reciprocal.h"
#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row_kernels.h"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {
namespace {

constexpr int kMaxThreads = 256;

// One functor an operation: called with a row and its first of eight columns.
struct GatherRows {
  const int32_t* indices;
  ConstRows table;
  Rows out;
  __device__ void operator()(int64_t row, int64_t column) const {
    store8(out.data + row * out.stride + column,
           load8(table.data + indices[row] * table.stride + column));
  }
};

struct Add {
  Rows x;
  ConstRows y;
  __device__ void operator()(int64_t row, int64_t column) const {
    uint16_t* at = x.data + row * x.stride + column;
    store8(at, add8(load8(at), load8(y.data + row * y.stride + column)));
  }
};

// x / (1 + exp(-x)), near enough that bf16(...) is the bf16 of the IEEE quotient for each of the
// 65,536 gates (row_kernels_test.cu tries them all). Both sides are quartered: the reciprocal of a
// value from 2^126 on would be flushed. CUDA's expf has the bits of contract::exp.
__device__ __forceinline__ float silu_before_rounding(float x) {
  const float quarter = contract::fma_rn(expf(-x), 0.25f, 0.25f);
  return (x * 0.25f) * contract::rcp(quarter);
}

struct SiluMul {
  ConstRows gate, up;
  Rows out;
  __device__ void operator()(int64_t row, int64_t column) const {
    const uint4 g = load8(gate.data + row * gate.stride + column);
    const uint4 u = load8(up.data + row * up.stride + column);
    const uint4 silu = map8([](float x) { return silu_before_rounding(x); }, g);
    store8(out.data + row * out.stride + column, multiply8(silu, u));
  }
};

template <class Operation>
__global__ void __launch_bounds__(kMaxThreads)
    for_each_vector(const Operation operation, int width, int blocks_a_row) {
  let_next_kernel_begin();
  const auto block = static_cast<int>(blockIdx.x);
  const int row = block / blocks_a_row;
  const int column = ((block - row * blocks_a_row) * static_cast<int>(blockDim.x) +
                      static_cast<int>(threadIdx.x)) *
                     kVector;
  wait_for_earlier_kernels();
  if (column < width) operation(row, column);
}

bool is_aligned(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % kVector == 0;
}

template <class Operation>
Status launch(const char* name, const Operation& operation, int64_t rows, int64_t width,
              cudaStream_t stream) {
  if (width < kVector || width % kVector != 0 || width > 1 << 24) {
    return Status(Code::unsupported, std::string(name) + ": width is " + std::to_string(width) +
                                         "; it must be a multiple of 8, at most 2^24");
  }
  const auto vectors = static_cast<int>(width / kVector);
  const int threads = vectors >= kMaxThreads ? kMaxThreads : (vectors + 31) / 32 * 32;
  const int blocks_a_row = (vectors + threads - 1) / threads;
  return launch_overlapped(name, for_each_vector<Operation>,
                           {.blocks = rows * blocks_a_row, .threads = threads}, stream, operation,
                           static_cast<int>(width), blocks_a_row);
}

}  // namespace

Status launch_embed(const int32_t* ids, const uint16_t* table, Rows out, int64_t rows,
                    int64_t width, cudaStream_t stream) {
  EXACT_CHECK(is_aligned(table, width) && is_aligned(out.data, out.stride), "embed: alignment");
  return launch("embed", GatherRows{ids, {table, width}, out}, rows, width, stream);
}

Status launch_gather_rows(const int32_t* rows, ConstRows x, Rows out, int64_t count, int64_t width,
                          cudaStream_t stream) {
  EXACT_CHECK(is_aligned(x.data, x.stride) && is_aligned(out.data, out.stride),
              "gather_rows: alignment");
  return launch("gather_rows", GatherRows{rows, x, out}, count, width, stream);
}

Status launch_add(Rows x, ConstRows y, int64_t rows, int64_t width, cudaStream_t stream) {
  EXACT_CHECK(is_aligned(x.data, x.stride) && is_aligned(y.data, y.stride), "add: alignment");
  return launch("add", Add{x, y}, rows, width, stream);
}

Status launch_silu_mul(ConstRows gate, ConstRows up, Rows out, int64_t rows, int64_t width,
                       cudaStream_t stream) {
  EXACT_CHECK(is_aligned(gate.data, gate.stride) && is_aligned(up.data, up.stride) &&
                  is_aligned(out.data, out.stride),
              "silu_mul: alignment");
  return launch("silu_mul", SiluMul{gate, up, out}, rows, width, stream);
}

}  // namespace exact::cuda
