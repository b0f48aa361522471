// chain_avx512.cc owns the chain for AVX-512: 32 lanes in two registers, several rows at a time to
// hide the latency of a chain. See chain.h for why it is exact.
//
// Everything between push_options and pop_options has internal linkage: nothing compiled for a wide
// machine may be shared with a narrow one.
#include "kernels/cpu/chain.h"

#if defined(__x86_64__)

#include <immintrin.h>

// GCC 12's own header passes undefined registers as the source of an all-ones mask (GCC bug
// 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

namespace exact::cpu {
namespace {

// int16 exponents of 32 operands: sentinels for zeros, and for what is outside the window.
inline __m512i operand_exponents(__m512i raw) {
  const __m512i field = _mm512_and_si512(_mm512_srli_epi16(raw, 7), _mm512_set1_epi16(255));
  const __m512i exponent =
      _mm512_sub_epi16(_mm512_max_epi16(field, _mm512_set1_epi16(1)), _mm512_set1_epi16(127));
  const __mmask32 zero = _mm512_testn_epi16_mask(raw, _mm512_set1_epi16(0x7fff));
  const __mmask32 wild = _mm512_cmpgt_epi16_mask(field, _mm512_set1_epi16(kTameExponent + 127));
  const __m512i tame = _mm512_mask_mov_epi16(exponent, zero, _mm512_set1_epi16(kZeroExponent));
  return _mm512_mask_mov_epi16(tame, wild, _mm512_set1_epi16(kWildExponent));
}

inline __m512 widen(__m256i raw) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

void expand_row(const uint16_t* row, int64_t count, int64_t padded_count, float* values,
                uint32_t* exponents) {
  for (int64_t k = 0; k < padded_count; k += 16) {
    const int64_t left = count - k;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : left <= 0 ? 0 : (1 << left) - 1);
    const __m256i raw = _mm256_maskz_loadu_epi16(mask, row + k);
    const __m512i narrow = operand_exponents(_mm512_castsi256_si512(raw));
    const __m512i biased = _mm512_add_epi16(narrow, _mm512_set1_epi16(127));
    const __m512i wide = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(biased));
    _mm512_storeu_ps(values + k, widen(raw));
    _mm512_storeu_si512(exponents + k, _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16)));
  }
}

void expand_panel(const uint16_t* source, int64_t source_stride, int64_t k_count, int64_t columns,
                  ChainPanel panel) {
  for (int64_t k = 0; k < k_count; k++) {
    const uint16_t* from = source + k * source_stride;
    float* values = panel.values + k * kPanelColumns;
    int16_t* exponents = panel.exponents + k * kPanelColumns;
    if (columns == kPanelColumns) {
      const __m512i raw = _mm512_loadu_si512(from);
      _mm512_storeu_ps(values, widen(_mm512_castsi512_si256(raw)));
      _mm512_storeu_ps(values + 16, widen(_mm512_extracti64x4_epi64(raw, 1)));
      _mm512_storeu_si512(exponents, operand_exponents(raw));
    } else {
      for (int64_t j = 0; j < columns; j += 16) {
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + j));
        const __m512i narrow = operand_exponents(_mm512_castsi256_si512(raw));
        _mm512_storeu_ps(values + j, widen(raw));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(exponents + j),
                            _mm512_castsi512_si256(narrow));
      }
    }
  }
}

// Replaces the lanes of `results` that `bad` marks.
[[gnu::noinline, gnu::cold]] void repair(const float* row, const float* panel,
                                         const float* accumulators, uint32_t bad, float* results) {
  for (; bad != 0; bad &= bad - 1) {
    const int j = __builtin_ctz(bad);
    results[j] = literal_step(row, panel + j, accumulators[j]);
  }
}

// Sixteen lanes of one row within a step.
struct Half {
  __m512i shift;  // (25 - e_max) << 23: added to the bits of a product, it scales it
  __m512i low;    // the accumulator and products 0 to 7
  __m512i high;   // products 8 to 15
};

inline void begin_half(Half& half, __m512i largest, const float* accumulators) {
  const __m512i c = _mm512_loadu_si512(accumulators);
  const __m512i field = _mm512_and_si512(c, _mm512_set1_epi32(0x7f800000));
  const __m512i exponent = _mm512_max_epi32(_mm512_slli_epi32(largest, 23), field);
  half.shift = _mm512_sub_epi32(_mm512_set1_epi32(152 << 23), exponent);
  half.low = _mm512_cvttps_epi32(_mm512_castsi512_ps(_mm512_add_epi32(c, half.shift)));
  half.high = _mm512_setzero_si512();
}

inline __m512i scaled_product(__m512 a, __m512 b, __m512i shift) {
  const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(a, b));
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

// Lanes whose products and accumulator are all zero.
inline __mmask16 zero_lanes(__m512i largest, const float* accumulators) {
  const __mmask16 products = _mm512_cmpeq_epi32_mask(largest, _mm512_set1_epi32(-kExponentClamp));
  return _mm512_mask_testn_epi32_mask(products, _mm512_loadu_si512(accumulators),
                                      _mm512_set1_epi32(0x7fffffff));
}

inline void end_row(const Half& left, const Half& right, __m512i largest, const float* row,
                    const float* panel, float* accumulators) {
  __mmask16 bad_left, bad_right;
  __m512 d_left = end_half(left, bad_left);
  __m512 d_right = end_half(right, bad_right);
  uint32_t bad = static_cast<uint32_t>(bad_left) | static_cast<uint32_t>(bad_right) << 16;
  if (__builtin_expect(bad != 0, 0)) {
    const __mmask16 zero_left =
        zero_lanes(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(largest)), accumulators);
    const __mmask16 zero_right =
        zero_lanes(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(largest, 1)), accumulators + 16);
    d_left = _mm512_mask_mov_ps(d_left, zero_left, _mm512_setzero_ps());
    d_right = _mm512_mask_mov_ps(d_right, zero_right, _mm512_setzero_ps());
    bad &= ~(static_cast<uint32_t>(zero_left) | static_cast<uint32_t>(zero_right) << 16);
    if (bad != 0) {
      float results[kPanelColumns];
      _mm512_storeu_ps(results, d_left);
      _mm512_storeu_ps(results + 16, d_right);
      repair(row, panel, accumulators, bad, results);
      d_left = _mm512_loadu_ps(results);
      d_right = _mm512_loadu_ps(results + 16);
    }
  }
  _mm512_storeu_ps(accumulators, d_left);
  _mm512_storeu_ps(accumulators + 16, d_right);
}

template <int kRows>
inline void chain_step(const float* values, const uint32_t* exponents, int64_t row_stride,
                       float* accumulators, int64_t accumulator_stride, const float* panel_values,
                       const int16_t* panel_exponents) {
  __m512i largest[kRows];
  for (int r = 0; r < kRows; r++) largest[r] = _mm512_set1_epi16(-kExponentClamp);
#pragma GCC unroll 16
  for (int i = 0; i < kChainStep; i++) {
    const __m512i panel = _mm512_loadu_si512(panel_exponents + i * kPanelColumns);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const __m512i row = _mm512_set1_epi32(static_cast<int>(exponents[r * row_stride + i]));
      largest[r] = _mm512_max_epi16(largest[r], _mm512_add_epi16(panel, row));
    }
  }
  Half left[kRows], right[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    largest[r] = _mm512_min_epi16(largest[r], _mm512_set1_epi16(kExponentClamp));
    const float* c = accumulators + r * accumulator_stride;
    begin_half(left[r], _mm512_cvtepi16_epi32(_mm512_castsi512_si256(largest[r])), c);
    begin_half(right[r], _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(largest[r], 1)), c + 16);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChainStep; i++) {
    const __m512 b_left = _mm512_loadu_ps(panel_values + i * kPanelColumns);
    const __m512 b_right = _mm512_loadu_ps(panel_values + i * kPanelColumns + 16);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const __m512 a = _mm512_set1_ps(values[r * row_stride + i]);
      __m512i& sum_left = i < 8 ? left[r].low : left[r].high;
      __m512i& sum_right = i < 8 ? right[r].low : right[r].high;
      sum_left = _mm512_add_epi32(sum_left, scaled_product(a, b_left, left[r].shift));
      sum_right = _mm512_add_epi32(sum_right, scaled_product(a, b_right, right[r].shift));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    end_row(left[r], right[r], largest[r], values + r * row_stride, panel_values,
            accumulators + r * accumulator_stride);
  }
}

template <int kRows>
void chain_rows(const ChainRows& rows, int64_t first, ChainPanel panel, int64_t steps) {
  const float* values = rows.values + first * rows.row_stride;
  const uint32_t* exponents = rows.exponents + first * rows.row_stride;
  float* accumulators = rows.accumulators + first * rows.accumulator_stride;
  for (int64_t step = 0; step < steps; step++) {
    const int64_t k = step * kChainStep;
    chain_step<kRows>(values + k, exponents + k, rows.row_stride, accumulators,
                      rows.accumulator_stride, panel.values + k * kPanelColumns,
                      panel.exponents + k * kPanelColumns);
  }
}

void chain(const ChainRows& rows, ChainPanel panel, int64_t steps) {
  int64_t r = 0;
  for (; r + 4 <= rows.row_count; r += 4) chain_rows<4>(rows, r, panel, steps);
  for (; r + 2 <= rows.row_count; r += 2) chain_rows<2>(rows, r, panel, steps);
  if (r < rows.row_count) chain_rows<1>(rows, r, panel, steps);
}

}  // namespace

const ChainKernels kAvx512Chain = {expand_row, expand_panel, chain};

}  // namespace exact::cpu

#pragma GCC pop_options
#endif
