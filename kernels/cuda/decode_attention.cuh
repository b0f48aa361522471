// decode_attention.cuh owns what both forms of decode attention are made of: who a block works for,
// fragments of keys, values and queries, and rule N5's softmax as a quad of lanes holds it.
//
// Both forms turn the products round: keys (and columns of O) are the 16 rows of a tensor-core
// tile, query heads of one kv head its 8 columns, so that a group of up to 8 heads costs one tile:
//
//   scores   S^T (16 keys x 8 heads)    = K (16 keys x k16) * Q^T (k16 x 8 heads)
//   output   O^T (16 columns x 8 heads) = V^T (16 columns x k16 keys) * P^T (k16 keys x 8 heads)
//
// In the softmax lane l holds head l / 4 and, of each 8 columns of a key block, the two at
// 2 * (l % 4): the lane whose sum rule N5 adds them to, and P^T's fragment at the same time.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/base/result.h"
#include "kernels/contract/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/sm90.cuh"

namespace exact::cuda {

inline constexpr int kHeadTile = 8;        // query heads of a tensor-core tile
inline constexpr int kRowBytes = 128;      // a slot of a column block
inline constexpr int kPieceBytes = 16384;  // the keys, or the values, of one key block

// The shape of the work, the same for every thread.
struct DecodeShape {
  int group = 0;           // query heads of a kv head
  int parts = 0;           // blocks that share a group: of at most 2 * kHeadTile heads each
  int first_sequence = 0;  // of this launch
  float c = 0;             // scale of the scores, rule N5
};

// What the pieces of a head width are, by column blocks of 64: [column block][key][128 bytes].
template <int kHeadWidth>
struct HeadShape {
  static constexpr int kKeys = contract::key_block(kHeadWidth);
  static constexpr int kColumnBlocks = (kHeadWidth + kColumnBlock - 1) / kColumnBlock;
  static constexpr int kTiles = kHeadWidth / 16;  // k16 steps of a score; 16-column tiles of O
  static constexpr int kColumnBlockBytes = kKeys * kRowBytes;
  static_assert(kColumnBlockBytes * kColumnBlocks == kPieceBytes);
};

// Four 8x8 matrices, each transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&registers)[4],
                                                         uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address)
               : "memory");
}

// `bytes` (a multiple of 16) from device memory to shared memory; `barrier` counts them.
__device__ __forceinline__ void copy_run(uint32_t to, const void* from, uint32_t bytes,
                                         uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// tensor_core_step, kept where it is written: between loads that it shall hide.
__device__ __forceinline__ void ordered_step(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A place in a ring of stages, each with a barrier that says full and one that says empty.
struct RingTurn {
  uint32_t full, empty;  // shared addresses
  int stages;
  int stage = 0;
  uint32_t parity = 0;
  bool wrapped = false;  // every stage has been used once

  __device__ uint32_t full_barrier() const { return full + 8u * static_cast<uint32_t>(stage); }
  __device__ uint32_t empty_barrier() const { return empty + 8u * static_cast<uint32_t>(stage); }
  __device__ void wait_full() const { barrier_wait(full_barrier(), parity); }
  __device__ void wait_empty() const {
    if (wrapped) barrier_wait(empty_barrier(), parity ^ 1u);
  }
  __device__ void advance() {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1u;
    wrapped = true;
  }
};

// The barriers of a ring of at most kStages.
template <int kStages>
struct RingBarriers {
  uint64_t full[kStages], empty[kStages];

  __device__ void init(int stages, int full_arrivals, int empty_arrivals) {
    for (int i = 0; i < stages; i++) {
      barrier_init(shared_address(&full[i]), full_arrivals);
      barrier_init(shared_address(&empty[i]), empty_arrivals);
    }
  }
  __device__ RingTurn turn(int stages = kStages) {
    return {shared_address(full), shared_address(empty), stages};
  }
};

// Whom a block works for: the heads [0, heads) from `first_head` on of one sequence.
struct DecodeWork {
  int row, position, first_page;
  int kv_head, first_head, heads;
  bool nobody;
};

template <int kHeadTiles>
__device__ __forceinline__ DecodeWork decode_work(const AttentionInputs& inputs,
                                                  const DecodeShape& shape, int sequence,
                                                  int kv_head_part) {
  const DeviceSequence s = inputs.step.sequences[shape.first_sequence + sequence];
  const int kv_head = kv_head_part / shape.parts, part = kv_head_part % shape.parts;
  const int first = part * kHeadTiles * kHeadTile;
  return {s.first_row,
          s.first_position,
          s.first_page,
          kv_head,
          kv_head * shape.group + first,
          min(shape.group - first, kHeadTiles * kHeadTile),
          s.row_count == 0};
}

// How a warp copies the keys or values of a key block: a lane has one run of slots, what a page has
// of one column block. Blocks come in descending order; the pages of 32 runs are read at once, a
// round before they are needed.
template <int kHeadWidth>
class PieceCopier {
 public:
  using Head = HeadShape<kHeadWidth>;

  __device__ PieceCopier(const AttentionInputs& inputs, const DecodeWork& work, int lane)
      : pages_(inputs.pages), table_(inputs.step.pages + work.first_page), lane_(lane) {
    const int run_slots = min(pages_.page_size, Head::kKeys);
    page_shift_ = 31 - __clz(pages_.page_size);
    run_shift_ = 31 - __clz(run_slots);
    const int runs = Head::kKeys >> run_shift_;
    run_ = lane & (runs - 1);
    column_block_ = lane / runs;
    kv_head_ = work.kv_head;
    last_run_ = work.position >> run_shift_;
    last_block_ = work.position / Head::kKeys;
    // Only whole k16 steps are read, and only those that the query sees.
    seen_ = (work.position % Head::kKeys / 16 + 1) * 16;
    round_ = last_run_ & ~31;
    page_ = page_of(round_ + lane);
    next_page_ = page_of(round_ - 32 + lane);
  }

  // Before the copies of a block, by all lanes.
  __device__ void turn_to(int block) {
    const int run = (block << (kKeyShift - run_shift_)) + run_;
    if ((run & ~31) != round_) {
      round_ -= 32;
      page_ = next_page_;
      next_page_ = page_of(round_ - 32 + lane_);
    }
    const int page = __shfl_sync(0xffffffffu, page_, run & 31);
    slots_ = block == last_block_ ? seen_ : Head::kKeys;
    const int first = run_ << run_shift_;
    const int in_page = (block * Head::kKeys + first) & (pages_.page_size - 1);
    const int count = min(1 << run_shift_, slots_ - first);
    bytes_ = column_block_ < Head::kColumnBlocks && count > 0 ? count * kRowBytes : 0;
    from_ = pages_.keys(page, kv_head_, min(column_block_, Head::kColumnBlocks - 1)) +
            in_page * kColumnBlock;
    to_ = static_cast<uint32_t>(column_block_ * Head::kColumnBlockBytes + first * kRowBytes);
  }

  __device__ void copy_keys(uint32_t piece, uint32_t barrier, uint64_t policy) const {
    copy(piece, from_, barrier, policy);
  }
  __device__ void copy_values(uint32_t piece, uint32_t barrier, uint64_t policy) const {
    copy(piece, from_ + pages_.kv_heads * pages_.head_elements(), barrier, policy);
  }

 private:
  static constexpr int kKeyShift = Head::kKeys == 64 ? 6 : 7;

  __device__ int page_of(int run) const {
    return run >= 0 ? table_[min(run, last_run_) << run_shift_ >> page_shift_] : 0;
  }
  __device__ void copy(uint32_t piece, const uint16_t* from, uint32_t barrier,
                       uint64_t policy) const {
    if (lane_ == 0)
      barrier_expect(barrier, static_cast<uint32_t>(slots_ * kRowBytes * Head::kColumnBlocks));
    __syncwarp();
    if (bytes_ > 0) copy_run(piece + to_, from, static_cast<uint32_t>(bytes_), barrier, policy);
  }

  LayerPages pages_;
  const int32_t* table_;
  int lane_, page_shift_, run_shift_, run_, column_block_, kv_head_;
  int last_run_, last_block_, seen_;
  int round_, page_, next_page_;
  int slots_ = 0, bytes_ = 0;
  const uint16_t* from_ = nullptr;
  uint32_t to_ = 0;
};

// Q^T of this lane: head lane / 4 of each tile, zeros where there is none.
template <int kHeadWidth, int kHeadTiles>
__device__ __forceinline__ void load_query(uint32_t (&query)[kHeadWidth / 16][kHeadTiles][2],
                                           const AttentionInputs& inputs, const DecodeWork& work,
                                           int lane) {
  const uint16_t* row = inputs.query + work.row * inputs.query_stride +
                        static_cast<int64_t>(work.first_head) * kHeadWidth;
#pragma unroll
  for (int tile = 0; tile < kHeadTiles; tile++) {
    const int head = tile * kHeadTile + lane / 4;
#pragma unroll
    for (int step = 0; step < kHeadWidth / 16; step++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint16_t* from = row + head * kHeadWidth + step * 16 + half * 8 + lane % 4 * 2;
        query[step][tile][half] = head < work.heads ? *reinterpret_cast<const uint32_t*>(from) : 0u;
      }
    }
  }
}

// Offset in a piece of the 16-byte chunk `chunk` (of the head) of key `row`, for a lane whose
// row % 8 is `row`'s.
template <int kHeadWidth>
__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>(chunk / 8 * HeadShape<kHeadWidth>::kColumnBlockBytes +
                               row * kRowBytes + ((chunk % 8 ^ (row & 7)) << 4));
}

// Keys [16 tile, 16 tile + 16), columns of k16 step `step`: K as the first operand.
template <int kHeadWidth>
__device__ __forceinline__ void load_keys(uint32_t (&keys)[4], uint32_t piece, int tile, int step,
                                          int lane) {
  load_matrices(keys,
                piece + chunk_offset<kHeadWidth>(tile * 16 + lane % 16, 2 * step + lane / 16));
}

// Columns [16 tile, 16 tile + 16) of keys [16 step, 16 step + 16): V^T as the first operand.
template <int kHeadWidth>
__device__ __forceinline__ void load_values(uint32_t (&values)[4], uint32_t piece, int tile,
                                            int step, int lane) {
  load_matrices_transposed(values,
                           piece + chunk_offset<kHeadWidth>(step * 16 + lane / 16 * 8 + lane % 8,
                                                            2 * tile + lane / 8 % 2));
}

// Zeroes the values of all but the first `left` keys of a step: what lies there is nobody's.
__device__ __forceinline__ void drop_values(uint32_t (&values)[4], int left, int lane) {
  const int key = lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t mask =
        (key + half * 8 < left ? 0x0000ffffu : 0u) | (key + half * 8 + 1 < left ? 0xffff0000u : 0u);
    values[2 * half] &= mask;
    values[2 * half + 1] &= mask;
  }
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The largest of a quad's four values.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// (l0 + l2) + (l1 + l3), in each lane of the quad.
__device__ __forceinline__ float quad_sum(float value) {
  value = value + __shfl_xor_sync(0xffffffffu, value, 2);
  return value + __shfl_xor_sync(0xffffffffu, value, 1);
}

// What lane 4h of the quads holds for head h, for the two heads of an output fragment's columns.
__device__ __forceinline__ float2 of_heads(float value, int lane) {
  const int source = lane % 4 * 8;
  return make_float2(__shfl_sync(0xffffffffu, value, source),
                     __shfl_sync(0xffffffffu, value, source + 4));
}

// O^T of one tile, scaled and rounded, to the columns [column, column + 16) of the heads' rows.
__device__ __forceinline__ void store_output(uint16_t* out, int head_width, int heads, int column,
                                             const float (&sums)[4], float2 inverse, int lane) {
  const int head = lane % 4 * 2;
  uint16_t* to = out + static_cast<int64_t>(head) * head_width + column + lane / 4;
  if (head < heads) {
    to[0] = float_to_bf16(sums[0] * inverse.x);
    to[8] = float_to_bf16(sums[2] * inverse.x);
  }
  if (head + 1 < heads) {
    to[head_width] = float_to_bf16(sums[1] * inverse.y);
    to[head_width + 8] = float_to_bf16(sums[3] * inverse.y);
  }
}

// ---- the launches behind launch_decode_attention, of shapes that it has checked
Status launch_streamed_attention(const AttentionInputs& inputs, int multiprocessors,
                                 cudaStream_t stream);
Status launch_spread_attention(const AttentionInputs& inputs, void* scratch, size_t scratch_bytes,
                               cudaStream_t stream);

// Launches `kernel` so that it may begin while the one before ends.
template <class... Parameters, class... Arguments>
Status launch_overlapping(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                          int shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) {
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = &overlap;
    config.numAttrs = 1;
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  if (error == cudaSuccess) return {};
  return Status(Code::device, std::string(name) + ": " + cudaGetErrorString(error));
}

}  // namespace exact::cuda
