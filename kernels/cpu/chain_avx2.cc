// chain_avx2.cc owns the chain for AVX2: 16 lanes in two registers, two rows at a time. See chain.h
// for why it is exact. The kernel runs with the rounding mode towards zero, so that int32 becomes
// fp32 as the rule asks; every other operation in it is exact.
//
// A 32-bit word of a panel holds two columns: an even one, whose value is a shift away, and an odd
// one, whose value is a mask away. So the lanes of one register are the even columns, those of the
// other the odd ones, and the exponents of both are masked and added at once.
//
// Everything between push_options and pop_options has internal linkage: nothing compiled for a wide
// machine may be shared with a narrow one.
#include "kernels/cpu/chain.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace exact::cpu {
namespace {

constexpr unsigned kRoundTowardsZero = 0x6000;  // of MXCSR
constexpr int kColumns = 16;                    // of a panel, at a time
constexpr int kHighHalf = static_cast<int>(0xffff0000u);
constexpr uint32_t kAllLanes = 0xffu;

inline __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store(void* to, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}

inline uint8_t any_wild(__m256i magnitudes) {
  const __m256i wild = _mm256_cmpgt_epi16(magnitudes, _mm256_set1_epi16(kLargestTame));
  return _mm256_movemask_epi8(wild) != 0 ? 1 : 0;
}

inline void store_pairs(__m128i exponents, uint32_t* to) {
  const __m256i wide = _mm256_cvtepu16_epi32(exponents);
  store(to, _mm256_or_si256(wide, _mm256_slli_epi32(wide, 16)));
}

void widen_row(const uint16_t* row, int64_t count, const WidenedRow& out) {
  for (int64_t k = 0; k < count; k += kChainStep) {
    uint16_t tail[kChainStep] = {};
    const uint16_t* from = row + k;
    if (count - k < kChainStep) {
      for (int64_t i = k; i < count; i++) tail[i - k] = row[i];
      from = tail;
    }
    const __m256i raw = load(from);
    const __m128i left = _mm256_castsi256_si128(raw), right = _mm256_extracti128_si256(raw, 1);
    store(out.values + k, _mm256_slli_epi32(_mm256_cvtepu16_epi32(left), 16));
    store(out.values + k + 8, _mm256_slli_epi32(_mm256_cvtepu16_epi32(right), 16));
    const __m256i exponents = _mm256_sub_epi16(_mm256_and_si256(raw, _mm256_set1_epi16(0x7f80)),
                                               _mm256_set1_epi16(127 << 7));
    store_pairs(_mm256_castsi256_si128(exponents), out.exponents + k);
    store_pairs(_mm256_extracti128_si256(exponents, 1), out.exponents + k + 8);
    out.wild[k / kChainStep] = any_wild(_mm256_and_si256(raw, _mm256_set1_epi16(0x7fff)));
  }
}

void find_wild(const uint16_t* panel, int64_t steps, uint8_t* wild) {
  for (int64_t step = 0; step < steps; step++) {
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 2 * kChainStep; i++, panel += kColumns) {
      largest = _mm256_max_epi16(largest, _mm256_and_si256(load(panel), _mm256_set1_epi16(0x7fff)));
    }
    wild[step] = any_wild(largest);
  }
}

// Eight lanes of one row within a step: even or odd columns.
struct Lanes {
  __m256i shift;  // (25 - e_max) << 23: added to the bits of a product, it scales it
  __m256i low;    // the accumulator and products 0 to 7
  __m256i high;   // products 8 to 15
};

// product_exponent: e_max of the products, biased, << 23.
inline void begin_lanes(Lanes& lanes, __m256i product_exponent, const float* accumulators) {
  const __m256i c = load(accumulators);
  const __m256i field = _mm256_and_si256(c, _mm256_set1_epi32(0x7f800000));
  lanes.shift =
      _mm256_sub_epi32(_mm256_set1_epi32(152 << 23), _mm256_max_epi32(product_exponent, field));
  lanes.low = _mm256_cvttps_epi32(_mm256_castsi256_ps(_mm256_add_epi32(c, lanes.shift)));
  lanes.high = _mm256_setzero_si256();
}

inline __m256i scaled_product(__m256 a, __m256i b, __m256i shift) {
  const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(a, _mm256_castsi256_ps(b)));
  return _mm256_cvttps_epi32(_mm256_castsi256_ps(_mm256_add_epi32(bits, shift)));
}

// Replaces the results of the lanes in `bad`, in the rounding mode that the rule is written for.
// `panel` points at lane 0's column; the next lane's is two columns on.
[[gnu::noinline, gnu::cold]] void repair(const float* row, const uint16_t* panel,
                                         const float* accumulators, uint32_t bad, float* results) {
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode & ~kRoundTowardsZero);
  for (; bad != 0; bad &= bad - 1) {
    const int lane = __builtin_ctz(bad);
    results[lane] = literal_step(row, panel + 2 * lane, accumulators[lane]);
  }
  _mm_setcsr(mode);
}

// Lanes whose accumulator and products are all zero: all ones in them.
inline __m256i zero_lanes(const float* row, const uint16_t* panel, int magnitude_mask, __m256i c) {
  __m256i any = _mm256_and_si256(c, _mm256_set1_epi32(0x7fffffff));
  for (int i = 0; i < kChainStep; i++) {
    if (row[i] == 0.0f) continue;
    any = _mm256_or_si256(
        any, _mm256_and_si256(load(panel + i * kPanelColumns), _mm256_set1_epi32(magnitude_mask)));
  }
  return _mm256_cmpeq_epi32(any, _mm256_setzero_si256());
}

// The slow end of a step: `odd` tells which columns of the panel the lanes are. A zero times
// something wild may be a NaN: in a wild step nothing is known to be zero.
[[gnu::noinline, gnu::cold]] void end_badly(const float* row, const uint16_t* panel, int odd,
                                            bool wild, uint32_t bad, __m256 results,
                                            float* accumulators) {
  const __m256 c = _mm256_loadu_ps(accumulators);
  const __m256 nan = _mm256_cmp_ps(c, c, _CMP_UNORD_Q);
  const __m256i zero_bits =
      wild ? _mm256_setzero_si256()
           : zero_lanes(row, panel, odd != 0 ? 0x7fff0000 : 0x7fff, _mm256_castps_si256(c));
  const __m256 zero = _mm256_castsi256_ps(zero_bits);
  results = _mm256_andnot_ps(zero, results);
  results = _mm256_blendv_ps(results, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)), nan);
  bad &= ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_or_ps(nan, zero)));
  float repaired[8];
  _mm256_storeu_ps(repaired, results);
  repair(row, panel + odd, accumulators, bad, repaired);
  _mm256_storeu_ps(accumulators, _mm256_loadu_ps(repaired));
}

// The sum as fp32 towards zero, unless a lane is outside the window or overflows.
inline void end_lanes(const Lanes& lanes, bool wild, const float* row, const uint16_t* panel,
                      int odd, float* accumulators) {
  const __m256i sum = _mm256_add_epi32(lanes.low, lanes.high);
  const __m256i overflow =
      _mm256_and_si256(_mm256_xor_si256(lanes.low, sum), _mm256_xor_si256(lanes.high, sum));
  const __m256i outside =
      _mm256_or_si256(lanes.shift, _mm256_cmpgt_epi32(lanes.shift, _mm256_set1_epi32(124 << 23)));
  auto bad = static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_or_si256(overflow, outside))));
  if (wild) bad = kAllLanes;
  const __m256i unscale = _mm256_sub_epi32(_mm256_set1_epi32(127 << 23), lanes.shift);
  const __m256 d = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_castsi256_ps(unscale));
  if (__builtin_expect(bad != 0, 0)) return end_badly(row, panel, odd, wild, bad, d, accumulators);
  _mm256_storeu_ps(accumulators, d);
}

// Some rows, and where in them a step begins. A pointer a row: with a stride the compiler keeps an
// address for every element.
template <int kRows>
struct StepRows {
  const float* values[kRows];
  const uint32_t* exponents[kRows];
  const uint8_t* wild[kRows];
  int64_t k;
  const uint16_t* next;  // to be fetched
};

template <int kRows>
inline void begin_rows(const StepRows<kRows>& rows, const uint16_t* panel,
                       const float* accumulators, Lanes* even, Lanes* odd) {
  __m256i largest[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kChainStep; i++) {
    _mm_prefetch(rows.next + i * kPanelColumns, _MM_HINT_T0);
    const __m256i field =
        _mm256_and_si256(load(panel + i * kPanelColumns), _mm256_set1_epi16(0x7f80));
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      const uint32_t exponent = rows.exponents[r][rows.k + i];
      const __m256i sum = _mm256_add_epi16(field, _mm256_set1_epi32(static_cast<int>(exponent)));
      largest[r] = i == 0 ? sum : _mm256_max_epi16(largest[r], sum);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; r++) {
    const float* c = accumulators + r * kColumns;
    begin_lanes(even[r], _mm256_slli_epi32(largest[r], 16), c);
    begin_lanes(odd[r], _mm256_and_si256(largest[r], _mm256_set1_epi32(kHighHalf)), c + 8);
  }
}

template <int kRows>
inline void chain_step(const StepRows<kRows>& rows, const uint16_t* panel, bool panel_wild,
                       float* accumulators) {
  Lanes even[kRows], odd[kRows];
  begin_rows<kRows>(rows, panel, accumulators, even, odd);
#pragma GCC unroll 16
  for (int i = 0; i < kChainStep; i++) {
    const __m256i raw = load(panel + i * kPanelColumns);
    const __m256i b_even = _mm256_slli_epi32(raw, 16);
    const __m256i b_odd = _mm256_and_si256(raw, _mm256_set1_epi32(kHighHalf));
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      const __m256 a = _mm256_set1_ps(rows.values[r][rows.k + i]);
      __m256i& sum_even = i < 8 ? even[r].low : even[r].high;
      __m256i& sum_odd = i < 8 ? odd[r].low : odd[r].high;
      sum_even = _mm256_add_epi32(sum_even, scaled_product(a, b_even, even[r].shift));
      sum_odd = _mm256_add_epi32(sum_odd, scaled_product(a, b_odd, odd[r].shift));
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; r++) {
    const bool wild = panel_wild || rows.wild[r][rows.k / kChainStep] != 0;
    const float* row = rows.values[r] + rows.k;
    float* c = accumulators + r * kColumns;
    end_lanes(even[r], wild, row, panel, 0, c);
    end_lanes(odd[r], wild, row, panel, 1, c + 8);
  }
}

// Sixteen columns in order <-> even ones, then odd ones.
inline void split_columns(const float* from, float* to) {
  const __m256 left = _mm256_loadu_ps(from), right = _mm256_loadu_ps(from + 8);
  const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(left, right, 0x88));
  const __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(left, right, 0xdd));
  _mm256_storeu_ps(to, _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8)));
  _mm256_storeu_ps(to + 8, _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8)));
}

inline void join_columns(const float* from, float* to) {
  const __m256 even = _mm256_loadu_ps(from), odd = _mm256_loadu_ps(from + 8);
  const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
  _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_storeu_ps(to + 8, _mm256_permute2f128_ps(low, high, 0x31));
}

template <int kRows>
[[gnu::noinline]] void chain_rows(const ChainRows& rows, int64_t first, const ChainPanel& panel,
                                  int64_t steps, int64_t column) {
  float accumulators[kRows * kColumns];
  float* outside = rows.accumulators + first * rows.accumulator_stride + column;
  for (int r = 0; r < kRows; r++) {
    split_columns(outside + r * rows.accumulator_stride, accumulators + r * kColumns);
  }
  StepRows<kRows> step_rows;
  for (int r = 0; r < kRows; r++) {
    const int64_t at = (first + r) * rows.row_stride;
    step_rows.values[r] = rows.values + at;
    step_rows.exponents[r] = rows.exponents + at;
    step_rows.wild[r] = rows.wild + at / kChainStep;
  }
  const uint16_t* columns = panel.values + column;
  for (int64_t step = 0; step < steps; step++) {
    step_rows.k = step * kChainStep;
    step_rows.next = panel.next + step * kChainStep * kPanelColumns;
    chain_step<kRows>(step_rows, columns, panel.wild[step] != 0, accumulators);
    columns += kChainStep * kPanelColumns;
  }
  for (int r = 0; r < kRows; r++) {
    join_columns(accumulators + r * kColumns, outside + r * rows.accumulator_stride);
  }
}

void chain(const ChainRows& rows, const ChainPanel& panel, int64_t steps) {
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | kRoundTowardsZero);
  for (int64_t column = 0; column < kPanelColumns; column += kColumns) {
    int64_t r = 0;
    for (; r + 2 <= rows.row_count; r += 2) chain_rows<2>(rows, r, panel, steps, column);
    if (r < rows.row_count) chain_rows<1>(rows, r, panel, steps, column);
  }
  _mm_setcsr(mode);
}

}  // namespace

const ChainKernels kAvx2Chain = {widen_row, find_wild, chain};

}  // namespace exact::cpu

#pragma GCC pop_options
#endif
