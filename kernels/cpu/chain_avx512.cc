// chain_avx512.cc owns the chain for AVX-512: 32 lanes in two registers, several rows at a time to
// hide the latency of a chain. See chain.h for why it is exact.
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

// GCC 12's own header passes undefined registers under an all-ones mask (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

namespace exact::cpu {
namespace {

constexpr int kHighHalf = static_cast<int>(0xffff0000u);
constexpr uint32_t kAllLanes = 0xffffffffu;

void widen_row(const uint16_t* row, int64_t count, const WidenedRow& out) {
  for (int64_t k = 0; k < count; k += kChainStep) {
    const int64_t left = count - k;
    const auto mask = static_cast<__mmask16>(left >= kChainStep ? 0xffff : (1 << left) - 1);
    const __m256i raw = _mm256_maskz_loadu_epi16(mask, row + k);
    const __m512i wide = _mm512_cvtepu16_epi32(raw);
    const __m256i field = _mm256_and_si256(raw, _mm256_set1_epi16(0x7f80));
    const __m512i exponent =
        _mm512_cvtepu16_epi32(_mm256_sub_epi16(field, _mm256_set1_epi16(127 << 7)));
    const __m256i magnitude = _mm256_and_si256(raw, _mm256_set1_epi16(0x7fff));
    const __mmask16 wild = _mm256_cmpgt_epi16_mask(magnitude, _mm256_set1_epi16(kLargestTame));
    _mm512_storeu_si512(out.values + k, _mm512_slli_epi32(wide, 16));
    _mm512_storeu_si512(out.exponents + k,
                        _mm512_or_si512(exponent, _mm512_slli_epi32(exponent, 16)));
    out.wild[k / kChainStep] = wild != 0 ? 1 : 0;
  }
}

void find_wild(const uint16_t* panel, int64_t steps, uint8_t* wild) {
  for (int64_t step = 0; step < steps; step++) {
    __m512i largest = _mm512_setzero_si512();
    for (int i = 0; i < kChainStep; i++, panel += kPanelColumns) {
      const __m512i raw = _mm512_loadu_si512(panel);
      largest = _mm512_max_epi16(largest, _mm512_and_si512(raw, _mm512_set1_epi16(0x7fff)));
    }
    wild[step] = _mm512_cmpgt_epi16_mask(largest, _mm512_set1_epi16(kLargestTame)) != 0 ? 1 : 0;
  }
}

// Sixteen lanes of one row within a step: its even or its odd columns.
struct Half {
  __m512i shift;  // (25 - e_max) << 23: added to the bits of a product, it scales it
  __m512i low;    // the accumulator and products 0 to 7
  __m512i high;   // products 8 to 15
};

// product_exponent: e_max of the products, biased, << 23.
inline void begin_half(Half& half, __m512i product_exponent, const float* accumulators) {
  const __m512i c = _mm512_load_si512(accumulators);
  const __m512i field = _mm512_and_si512(c, _mm512_set1_epi32(0x7f800000));
  half.shift =
      _mm512_sub_epi32(_mm512_set1_epi32(152 << 23), _mm512_max_epi32(product_exponent, field));
  half.low = _mm512_cvttps_epi32(_mm512_castsi512_ps(_mm512_add_epi32(c, half.shift)));
  half.high = _mm512_setzero_si512();
}

inline __m512i scaled_product(__m512 a, __m512i b, __m512i shift) {
  const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(a, _mm512_castsi512_ps(b)));
  return _mm512_cvttps_epi32(_mm512_castsi512_ps(_mm512_add_epi32(bits, shift)));
}

// The sum as fp32 towards zero; bad: lanes outside the window or with an overflow.
inline __m512 end_half(const Half& half, __mmask16& bad) {
  const __m512i sum = _mm512_add_epi32(half.low, half.high);
  const __m512i overflow =
      _mm512_and_si512(_mm512_xor_si512(half.low, sum), _mm512_xor_si512(half.high, sum));
  bad = static_cast<__mmask16>(_mm512_movepi32_mask(overflow) |
                               _mm512_cmpgt_epu32_mask(half.shift, _mm512_set1_epi32(124 << 23)));
  const __m512i unscale = _mm512_sub_epi32(_mm512_set1_epi32(127 << 23), half.shift);
  return _mm512_mul_ps(_mm512_cvt_roundepi32_ps(sum, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC),
                       _mm512_castsi512_ps(unscale));
}

// The bits of each column's values that meet a nonzero value of the row.
inline __m512i nonzero_products(const float* row, const uint16_t* panel) {
  __m512i any = _mm512_setzero_si512();
  for (int i = 0; i < kChainStep; i++) {
    if (row[i] != 0.0f) {
      any = _mm512_or_si512(any, _mm512_loadu_si512(panel + i * kPanelColumns));
    }
  }
  return any;
}

// Replaces the results of the lanes in `bad`. Lanes 0 to 15 are even columns, 16 to 31 odd ones. A
// zero times something wild may be a NaN: in a wild step nothing is known to be zero.
[[gnu::noinline, gnu::cold]] void repair(const float* row, const uint16_t* panel, bool wild,
                                         const float* accumulators, uint32_t bad, float* results) {
  const __m512i products = wild ? _mm512_set1_epi32(-1) : nonzero_products(row, panel);
  for (int half = 0; half < 2; half++) {
    const __m512 c = _mm512_load_ps(accumulators + 16 * half);
    const auto wanted = static_cast<__mmask16>(bad >> (16 * half));
    const __mmask16 nan = _mm512_mask_cmp_ps_mask(wanted, c, c, _CMP_UNORD_Q);
    const __mmask16 zero = _mm512_mask_testn_epi32_mask(
        _mm512_mask_testn_epi32_mask(wanted, products,
                                     _mm512_set1_epi32(half == 0 ? 0x7fff : 0x7fff0000)),
        _mm512_castps_si512(c), _mm512_set1_epi32(0x7fffffff));
    __m512 d = _mm512_load_ps(results + 16 * half);
    d = _mm512_mask_mov_ps(d, nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)));
    d = _mm512_mask_mov_ps(d, zero, _mm512_setzero_ps());
    _mm512_store_ps(results + 16 * half, d);
    bad &= ~(static_cast<uint32_t>(nan | zero) << (16 * half));
  }
  for (; bad != 0; bad &= bad - 1) {
    const int lane = __builtin_ctz(bad);
    const int column = lane < 16 ? 2 * lane : 2 * (lane - 16) + 1;
    results[lane] = literal_step(row, panel + column, accumulators[lane]);
  }
}

inline void end_row(const Half& even, const Half& odd, bool wild, const float* row,
                    const uint16_t* panel, float* accumulators) {
  __mmask16 bad_even, bad_odd;
  const __m512 d_even = end_half(even, bad_even);
  const __m512 d_odd = end_half(odd, bad_odd);
  uint32_t bad = static_cast<uint32_t>(bad_even) | static_cast<uint32_t>(bad_odd) << 16;
  if (wild) bad = kAllLanes;
  if (__builtin_expect(bad != 0, 0)) {
    alignas(64) float results[kPanelColumns];
    _mm512_store_ps(results, d_even);
    _mm512_store_ps(results + 16, d_odd);
    repair(row, panel, wild, accumulators, bad, results);
    _mm512_store_ps(accumulators, _mm512_load_ps(results));
    _mm512_store_ps(accumulators + 16, _mm512_load_ps(results + 16));
    return;
  }
  _mm512_store_ps(accumulators, d_even);
  _mm512_store_ps(accumulators + 16, d_odd);
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
                       const float* accumulators, Half* even, Half* odd) {
  __m512i largest[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kChainStep; i++) {
    _mm_prefetch(rows.next + i * kPanelColumns, _MM_HINT_T0);
    const __m512i field =
        _mm512_and_si512(_mm512_loadu_si512(panel + i * kPanelColumns), _mm512_set1_epi16(0x7f80));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const uint32_t exponent = rows.exponents[r][rows.k + i];
      const __m512i sum = _mm512_add_epi16(field, _mm512_set1_epi32(static_cast<int>(exponent)));
      largest[r] = i == 0 ? sum : _mm512_max_epi16(largest[r], sum);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    const float* c = accumulators + r * kPanelColumns;
    begin_half(even[r], _mm512_slli_epi32(largest[r], 16), c);
    begin_half(odd[r], _mm512_and_si512(largest[r], _mm512_set1_epi32(kHighHalf)), c + 16);
  }
}

template <int kRows>
inline void chain_step(const StepRows<kRows>& rows, const uint16_t* panel, bool panel_wild,
                       float* accumulators) {
  Half even[kRows], odd[kRows];
  begin_rows<kRows>(rows, panel, accumulators, even, odd);
#pragma GCC unroll 16
  for (int i = 0; i < kChainStep; i++) {
    const __m512i raw = _mm512_loadu_si512(panel + i * kPanelColumns);
    const __m512i b_even = _mm512_slli_epi32(raw, 16);
    const __m512i b_odd = _mm512_and_si512(raw, _mm512_set1_epi32(kHighHalf));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const __m512 a = _mm512_set1_ps(rows.values[r][rows.k + i]);
      __m512i& sum_even = i < 8 ? even[r].low : even[r].high;
      __m512i& sum_odd = i < 8 ? odd[r].low : odd[r].high;
      sum_even = _mm512_add_epi32(sum_even, scaled_product(a, b_even, even[r].shift));
      sum_odd = _mm512_add_epi32(sum_odd, scaled_product(a, b_odd, odd[r].shift));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    const bool wild = panel_wild || rows.wild[r][rows.k / kChainStep] != 0;
    end_row(even[r], odd[r], wild, rows.values[r] + rows.k, panel,
            accumulators + r * kPanelColumns);
  }
}

// Columns in order <-> even ones, then odd ones.
inline void split_columns(const float* from, float* to) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512 left = _mm512_loadu_ps(from), right = _mm512_loadu_ps(from + 16);
  _mm512_store_ps(to, _mm512_permutex2var_ps(left, even, right));
  _mm512_store_ps(to + 16, _mm512_permutex2var_ps(left, odd, right));
}

inline void join_columns(const float* from, float* to) {
  const __m512i left = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i right = _mm512_add_epi32(left, _mm512_set1_epi32(8));
  const __m512 even = _mm512_load_ps(from), odd = _mm512_load_ps(from + 16);
  _mm512_storeu_ps(to, _mm512_permutex2var_ps(even, left, odd));
  _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(even, right, odd));
}

template <int kRows>
void chain_rows(const ChainRows& rows, int64_t first, const ChainPanel& panel, int64_t steps) {
  alignas(64) float accumulators[kRows * kPanelColumns];
  float* outside = rows.accumulators + first * rows.accumulator_stride;
  for (int r = 0; r < kRows; r++) {
    split_columns(outside + r * rows.accumulator_stride, accumulators + r * kPanelColumns);
  }
  StepRows<kRows> step_rows;
  for (int r = 0; r < kRows; r++) {
    const int64_t at = (first + r) * rows.row_stride;
    step_rows.values[r] = rows.values + at;
    step_rows.exponents[r] = rows.exponents + at;
    step_rows.wild[r] = rows.wild + at / kChainStep;
  }
  const uint16_t* columns = panel.values;
  for (int64_t step = 0; step < steps; step++) {
    step_rows.k = step * kChainStep;
    step_rows.next = panel.next + step * kChainStep * kPanelColumns;
    chain_step<kRows>(step_rows, columns, panel.wild[step] != 0, accumulators);
    columns += kChainStep * kPanelColumns;
  }
  for (int r = 0; r < kRows; r++) {
    join_columns(accumulators + r * kPanelColumns, outside + r * rows.accumulator_stride);
  }
}

void chain(const ChainRows& rows, const ChainPanel& panel, int64_t steps) {
  int64_t r = 0;
  for (; r + 4 <= rows.row_count; r += 4) chain_rows<4>(rows, r, panel, steps);
  if (r + 2 <= rows.row_count) {
    chain_rows<2>(rows, r, panel, steps);
    r += 2;
  }
  if (r < rows.row_count) chain_rows<1>(rows, r, panel, steps);
}

}  // namespace

const ChainKernels kAvx512Chain = {widen_row, find_wild, chain};

}  // namespace exact::cpu

#pragma GCC pop_options
#endif
