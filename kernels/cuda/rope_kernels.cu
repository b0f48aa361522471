// rope            head = rotate(norm(head)), in place                         rules N2, N3, N4, N6
// store_kv        pages = keys, values
// rope_store_kv   all heads of a row: queries rotated in place, keys on their way to the pages
//   rotate  out[i] = bf16( bf16(x[i] cos[i]) + bf16(-x[i + E/2] sin[i]) ), i < E/2;  +x[i - E/2]
//   else
// shapes  rows of heads * E bf16; E in {32, 64, 80, 96, 128, 256}; pages as in kv_layout.h
// order   of the norm's sum: of rule N3 for the width E (contract/reduce.h), held to 32 lanes that
//         are spread over fewer: a halving is a shuffle or lies within a lane
// rounds  where bf16(...) is written
// launch  L = E/16 lanes of a warp take a head; lane c has the columns [8c, 8c + 8) and the same
//         E/2 further on: what it rotates it has. Blocks of 256 threads.
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
constexpr int kThreads = 256;

// What one launch does with a row: `query_heads` heads to rotate in place, then the keys and values
// of pages.kv_heads heads, if there are pages. cos_sin null: keys are stored as they are.
struct HeadWork {
  Rows query;
  int32_t query_heads;
  ConstRows keys, values;
  int32_t kv_heads;
  RopeInputs rope;
  LayerPages pages;
  int32_t page_shift;
  const int32_t* positions;
  const int32_t* row_sequence;
  const DeviceSequence* sequences;
  const int32_t* page_table;
  int64_t heads;  // of all rows
};

template <int kWidth>
struct HeadLanes {
  static constexpr int kUsed = kWidth / 16;
  static constexpr int kTaken = kUsed <= 4 ? 4 : kUsed <= 8 ? 8 : 16;  // a power of two
};

// The columns of one lane.
struct HeadPart {
  uint4 low, high;
};

struct Floats8 {
  float at[8];
};

__device__ __forceinline__ Floats8 widen(const uint4& v) {
  return {{low_half(v.x), high_half(v.x), low_half(v.y), high_half(v.y), low_half(v.z),
           high_half(v.z), low_half(v.w), high_half(v.w)}};
}

__device__ __forceinline__ Floats8 squares(const uint4& v) {
  Floats8 x = widen(v);
#pragma unroll
  for (float& value : x.at) value = value * value;
  return x;
}

// Two groups of four: sums of their squares in the two forms.
struct Pair {
  float at[2];
};

__device__ __forceinline__ Pair group_sums(const Floats8& s) {
  return {{((s.at[0] + s.at[1]) + s.at[2]) + s.at[3], ((s.at[4] + s.at[5]) + s.at[6]) + s.at[7]}};
}
__device__ __forceinline__ Pair fused_group_sums(const uint4& v) {
  const Floats8 x = widen(v);
  Pair sums{{0.0f, 0.0f}};
#pragma unroll
  for (int i = 0; i < 8; i++) sums.at[i / 4] = contract::fma_rn(x.at[i], x.at[i], sums.at[i / 4]);
  return sums;
}

__device__ __forceinline__ Pair add_pairs(const Pair& a, const Pair& b) {
  return {{a.at[0] + b.at[0], a.at[1] + b.at[1]}};
}

// Halves 2 * lanes values of which each lane has two neighbours; lane 0 gets the sum.
template <int kTaken>
__device__ __forceinline__ float halve_pairs(Pair pair, int lanes) {
  for (int off = lanes / 2; off > 0; off /= 2) {
    pair.at[0] = pair.at[0] + __shfl_down_sync(kAllLanes, pair.at[0], off, kTaken);
    pair.at[1] = pair.at[1] + __shfl_down_sync(kAllLanes, pair.at[1], off, kTaken);
  }
  return pair.at[0] + pair.at[1];
}

// Chunk k of eight columns, whoever has it; zeros beyond the head.
template <int kWidth>
__device__ __forceinline__ uint4 fetch_chunk(const HeadPart& part, int k) {
  using Lanes = HeadLanes<kWidth>;
  const int source = k % Lanes::kUsed;
  const auto fetch = [&](uint32_t low, uint32_t high) {
    const uint32_t from_low = __shfl_sync(kAllLanes, low, source, Lanes::kTaken);
    const uint32_t from_high = __shfl_sync(kAllLanes, high, source, Lanes::kTaken);
    return k < Lanes::kUsed ? from_low : k < 2 * Lanes::kUsed ? from_high : 0u;
  };
  return {fetch(part.low.x, part.high.x), fetch(part.low.y, part.high.y),
          fetch(part.low.z, part.high.z), fetch(part.low.w, part.high.w)};
}

// Heads below 128 columns: 32 lanes of the rule are eight each of lanes 0 to 3.
template <int kWidth>
__device__ __forceinline__ float sum_narrow_head(const HeadPart& part, int lane, bool fused) {
  constexpr int kTaken = HeadLanes<kWidth>::kTaken;
  const int c = lane % 4;
  const uint4 first = fetch_chunk<kWidth>(part, c);
  const uint4 second = fetch_chunk<kWidth>(part, c + 4);
  const uint4 third = fetch_chunk<kWidth>(part, c + 8);
  if (fused) {
    const Pair sums = add_pairs(add_pairs(fused_group_sums(first), fused_group_sums(third)),
                                fused_group_sums(second));
    return halve_pairs<kTaken>(sums, 4);
  }
  Floats8 sums = squares(first);
  const Floats8 b = squares(second), d = squares(third);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float s = (sums.at[i] + b.at[i]) + d.at[i];
    s = s + __shfl_down_sync(kAllLanes, s, 2, kTaken);
    sums.at[i] = s + __shfl_down_sync(kAllLanes, s, 1, kTaken);
  }
#pragma unroll
  for (int off = 4; off > 0; off /= 2) {
    for (int i = 0; i < off; i++) sums.at[i] = sums.at[i] + sums.at[i + off];
  }
  return sums.at[0];
}

// The sum of squares of a head in the rule's order, in its lane 0.
template <int kWidth>
__device__ __forceinline__ float sum_head(const HeadPart& part, int lane, bool fused) {
  constexpr int kTaken = HeadLanes<kWidth>::kTaken;
  if constexpr (kWidth < 128) {
    return sum_narrow_head<kWidth>(part, lane, fused);
  } else if constexpr (kWidth == 128) {  // the high columns are 16 lanes of the rule further on
    const Pair low = fused ? fused_group_sums(part.low) : group_sums(squares(part.low));
    const Pair high = fused ? fused_group_sums(part.high) : group_sums(squares(part.high));
    return halve_pairs<kTaken>(add_pairs(low, high), kTaken);
  } else {  // hf: a second element of each accumulator; fused: another warp
    if (fused) {
      return halve_pairs<kTaken>(fused_group_sums(part.low), kTaken) +
             halve_pairs<kTaken>(fused_group_sums(part.high), kTaken);
    }
    Floats8 sums = squares(part.low);
    const Floats8 high = squares(part.high);
#pragma unroll
    for (int i = 0; i < 8; i++) sums.at[i] = sums.at[i] + high.at[i];
    return halve_pairs<kTaken>(group_sums(sums), kTaken);
  }
}

template <int kWidth>
__device__ __forceinline__ HeadPart norm_head(const HeadPart& part, const HeadPart& weight,
                                              int lane, const RopeInputs& rope) {
  const bool fused = rope.form == NormForm::fused;
  const float sum =
      __shfl_sync(kAllLanes, sum_head<kWidth>(part, lane, fused), 0, HeadLanes<kWidth>::kTaken);
  constexpr auto kColumns = static_cast<float>(kWidth);
  const float mean = fused ? sum / kColumns : sum * (1.0f / kColumns);
  const float factor = contract::rms_factor(mean, rope.epsilon);
  if (fused) {
    const auto scale = [=](float x, float w) { return w * (factor * x); };
    return {map8(scale, part.low, weight.low), map8(scale, part.high, weight.high)};
  }
  const auto scale = [=](float x) { return x * factor; };
  return {multiply8(weight.low, map8(scale, part.low)),
          multiply8(weight.high, map8(scale, part.high))};
}

__device__ __forceinline__ HeadPart rotate(const HeadPart& x, const HeadPart& cosine,
                                           const HeadPart& sine) {
  const auto minus_product = [](float a, float b) { return -a * b; };
  return {add8(multiply8(x.low, cosine.low), map8(minus_product, x.high, sine.low)),
          add8(multiply8(x.high, cosine.high), multiply8(x.low, sine.high))};
}

template <int kWidth>
__device__ __forceinline__ HeadPart load_part(const uint16_t* head, int lane) {
  return {load8(head + lane * kVector), load8(head + kWidth / 2 + lane * kVector)};
}

// Where chunk `chunk` of a head's slot lies, from the start of its column block 0.
__device__ __forceinline__ int64_t chunk_offset(const LayerPages& pages, int slot, int chunk) {
  constexpr int kChunks = kColumnBlock / kVector;
  return int64_t{chunk / kChunks} * pages.page_size * kColumnBlock +
         swizzled(slot, chunk % kChunks * kVector);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) head_kernel(const HeadWork work) {
  using Lanes = HeadLanes<kWidth>;
  let_next_kernel_begin();
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t item = thread / Lanes::kTaken;
  const int lane = static_cast<int>(threadIdx.x) % Lanes::kTaken;
  const bool used = item < work.heads && lane < Lanes::kUsed;
  const int heads_a_row = work.query_heads + 2 * work.kv_heads;
  const int row = used ? static_cast<int>(item) / heads_a_row : 0;
  int head = used ? static_cast<int>(item) - row * heads_a_row : 0;
  // The step's tables, rotary tables and weights are written by copies, which no kernel overlaps:
  // they are read while the kernel before ends.
  const int position = work.positions[row];
  const bool is_query = head < work.query_heads;
  if (!is_query) head -= work.query_heads;
  const bool is_value = !is_query && head >= work.kv_heads;
  if (is_value) head -= work.kv_heads;
  const bool rotates = used && !is_value && work.rope.cos_sin != nullptr;
  const uint16_t* const norm = is_query ? work.rope.query_norm : work.rope.key_norm;
  const bool norms = rotates && norm != nullptr;
  HeadPart weight{}, cosine{}, sine{};
  if (norms) weight = load_part<kWidth>(norm, lane);
  const int sequence = used && !is_query ? work.row_sequence[row] : -1;
  if (rotates) {
    const uint16_t* const table = work.rope.cos_sin + int64_t{position} * 2 * kWidth;
    cosine = load_part<kWidth>(table, lane);
    sine = load_part<kWidth>(table + kWidth, lane);
  }
  uint16_t* to = nullptr;
  if (sequence >= 0) {
    const int first_page = work.sequences[sequence].first_page;
    const int page = work.page_table[first_page + (position >> work.page_shift)];
    to = is_value ? work.pages.values(page, head, 0) : work.pages.keys(page, head, 0);
  }
  const uint16_t* from = is_query   ? work.query.data + row * work.query.stride
                         : is_value ? work.values.data + row * work.values.stride
                                    : work.keys.data + row * work.keys.stride;
  from += head * kWidth;
  wait_for_earlier_kernels();
  HeadPart part{};
  if (used) part = load_part<kWidth>(from, lane);
  if (__any_sync(kAllLanes, norms)) {
    const HeadPart normed = norm_head<kWidth>(part, weight, lane, work.rope);
    if (norms) part = normed;
  }
  if (rotates) part = rotate(part, cosine, sine);
  if (!used) return;
  if (is_query) {
    uint16_t* const out = work.query.data + row * work.query.stride + head * kWidth;
    store8(out + lane * kVector, part.low);
    store8(out + kWidth / 2 + lane * kVector, part.high);
  } else if (to != nullptr) {
    const int slot = position & (work.pages.page_size - 1);
    store8(to + chunk_offset(work.pages, slot, lane), part.low);
    store8(to + chunk_offset(work.pages, slot, lane + Lanes::kUsed), part.high);
  }
}

Status launch(const char* name, HeadWork& work, int32_t head_width, const DeviceStep& step,
              cudaStream_t stream) {
  EXACT_RETURN_IF_ERROR(contract::check_head_width(head_width));
  if (work.kv_heads > 0) {
    const int32_t size = work.pages.page_size;
    if (size < 16 || size > 128 || (size & (size - 1)) != 0) {
      return Status(Code::unsupported, std::string(name) + ": page size is " +
                                           std::to_string(size) + "; it must be 16, 32, 64 or 128");
    }
    work.page_shift = __builtin_ctz(static_cast<unsigned>(size));
  }
  work.positions = step.positions;
  work.row_sequence = step.row_sequence;
  work.sequences = step.sequences;
  work.page_table = step.pages;
  work.heads = int64_t{step.rows} * (work.query_heads + 2 * work.kv_heads);
  EXACT_CHECK(work.heads < int64_t{1} << 31, "more heads in a step than an int counts");
  const auto launch_width = [&]<int kWidth>() {
    // Few heads: small blocks, spread over all multiprocessors.
    constexpr int64_t kFewThreads = 132 * 512;
    const int64_t all = work.heads * HeadLanes<kWidth>::kTaken;
    const int threads = all <= kFewThreads ? 64 : kThreads;
    return launch_overlapped(name, head_kernel<kWidth>,
                             {.blocks = (all + threads - 1) / threads, .threads = threads}, stream,
                             work);
  };
  switch (head_width) {
    case 32:
      return launch_width.operator()<32>();
    case 64:
      return launch_width.operator()<64>();
    case 80:
      return launch_width.operator()<80>();
    case 96:
      return launch_width.operator()<96>();
    case 128:
      return launch_width.operator()<128>();
    default:
      return launch_width.operator()<256>();
  }
}

bool is_aligned(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % kVector == 0;
}

}  // namespace

Status launch_rope(Rows x, int32_t heads, int32_t head_width, const RopeInputs& rope,
                   const uint16_t* head_norm, const DeviceStep& step, cudaStream_t stream) {
  EXACT_CHECK(is_aligned(x.data, x.stride) && rope.cos_sin != nullptr, "rope: alignment, tables");
  HeadWork work{};
  work.query = x;
  work.query_heads = heads;
  work.rope = rope;
  work.rope.query_norm = head_norm;
  work.rope.key_norm = nullptr;
  return launch("rope", work, head_width, step, stream);
}

Status launch_store_kv(ConstRows keys, ConstRows values, const LayerPages& pages,
                       const DeviceStep& step, cudaStream_t stream) {
  EXACT_CHECK(is_aligned(keys.data, keys.stride) && is_aligned(values.data, values.stride),
              "store_kv: alignment");
  HeadWork work{};
  work.keys = keys;
  work.values = values;
  work.kv_heads = pages.kv_heads;
  work.pages = pages;
  return launch("store_kv", work, pages.head_width, step, stream);
}

Status launch_rope_store_kv(Rows query, int32_t query_heads, Rows keys, ConstRows values,
                            const RopeInputs& rope, const LayerPages& pages, const DeviceStep& step,
                            cudaStream_t stream) {
  EXACT_CHECK(is_aligned(query.data, query.stride) && is_aligned(keys.data, keys.stride) &&
                  is_aligned(values.data, values.stride) && rope.cos_sin != nullptr,
              "rope_store_kv: alignment, tables");
  HeadWork work{};
  work.query = query;
  work.query_heads = query_heads;
  work.keys = {keys.data, keys.stride};
  work.values = values;
  work.kv_heads = pages.kv_heads;
  work.rope = rope;
  work.pages = pages;
  return launch("rope_store_kv", work, pages.head_width, step, stream);
}

}  // namespace exact::cuda
