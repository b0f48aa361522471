// chain_avx2.cc owns the chain for AVX2: 16 lanes in two registers, two rows at a time. See chain.h
// for why it is exact. The kernel runs with the rounding mode towards zero, so that int32 becomes
// fp32 as the rule asks; every other operation in it is exact.
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
constexpr int kHalfColumns = 16;

inline __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store(void* to, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}

// int16 exponents of 16 operands: sentinels for zeros, and for what is outside the window.
inline __m256i operand_exponents(__m256i raw) {
  const __m256i field = _mm256_and_si256(_mm256_srli_epi16(raw, 7), _mm256_set1_epi16(255));
  const __m256i exponent =
      _mm256_sub_epi16(_mm256_max_epi16(field, _mm256_set1_epi16(1)), _mm256_set1_epi16(127));
  const __m256i zero =
      _mm256_cmpeq_epi16(_mm256_and_si256(raw, _mm256_set1_epi16(0x7fff)), _mm256_setzero_si256());
  const __m256i wild = _mm256_cmpgt_epi16(field, _mm256_set1_epi16(kTameExponent + 127));
  const __m256i tame = _mm256_blendv_epi8(exponent, _mm256_set1_epi16(kZeroExponent), zero);
  return _mm256_blendv_epi8(tame, _mm256_set1_epi16(kWildExponent), wild);
}

inline __m256 widen(__m128i raw) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}

inline void widen_sixteen(__m256i raw, float* values) {
  _mm256_storeu_ps(values, widen(_mm256_castsi256_si128(raw)));
  _mm256_storeu_ps(values + 8, widen(_mm256_extracti128_si256(raw, 1)));
}

inline void store_pairs(__m128i biased, uint32_t* exponents) {
  const __m256i wide = _mm256_cvtepu16_epi32(biased);
  store(exponents, _mm256_or_si256(wide, _mm256_slli_epi32(wide, 16)));
}

void expand_row(const uint16_t* row, int64_t count, int64_t padded_count, float* values,
                uint32_t* exponents) {
  for (int64_t k = 0; k < padded_count; k += 16) {
    uint16_t tail[16] = {};
    const uint16_t* from = row + k;
    if (count - k < 16) {
      for (int64_t i = k; i < count; i++) tail[i - k] = row[i];
      from = tail;
    }
    const __m256i raw = load(from);
    const __m256i biased = _mm256_add_epi16(operand_exponents(raw), _mm256_set1_epi16(127));
    widen_sixteen(raw, values + k);
    store_pairs(_mm256_castsi256_si128(biased), exponents + k);
    store_pairs(_mm256_extracti128_si256(biased, 1), exponents + k + 8);
  }
}

void expand_panel(const uint16_t* source, int64_t source_stride, int64_t k_count, int64_t columns,
                  ChainPanel panel) {
  for (int64_t k = 0; k < k_count; k++) {
    for (int64_t j = 0; j < columns; j += 16) {
      const __m256i raw = load(source + k * source_stride + j);
      widen_sixteen(raw, panel.values + k * kPanelColumns + j);
      store(panel.exponents + k * kPanelColumns + j, operand_exponents(raw));
    }
  }
}

// Replaces the lanes of `results` that `bad` marks, in the rounding mode that the rule is written
// for.
[[gnu::noinline, gnu::cold]] void repair(const float* row, const float* panel,
                                         const float* accumulators, uint32_t bad, float* results) {
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode & ~kRoundTowardsZero);
  for (; bad != 0; bad &= bad - 1) {
    const int j = __builtin_ctz(bad);
    results[j] = literal_step(row, panel + j, accumulators[j]);
  }
  _mm_setcsr(mode);
}

// Eight lanes of one row within a step.
struct Eighth {
  __m256i shift;  // (25 - e_max) << 23: added to the bits of a product, it scales it
  __m256i low;    // the accumulator and products 0 to 7
  __m256i high;   // products 8 to 15
};

inline void begin_eighth(Eighth& lanes, __m128i largest, const float* accumulators) {
  const __m256i c = load(accumulators);
  const __m256i field = _mm256_and_si256(c, _mm256_set1_epi32(0x7f800000));
  const __m256i exponent =
      _mm256_max_epi32(_mm256_slli_epi32(_mm256_cvtepi16_epi32(largest), 23), field);
  lanes.shift = _mm256_sub_epi32(_mm256_set1_epi32(152 << 23), exponent);
  lanes.low = _mm256_cvttps_epi32(_mm256_castsi256_ps(_mm256_add_epi32(c, lanes.shift)));
  lanes.high = _mm256_setzero_si256();
}

inline __m256i scaled_product(__m256 a, __m256 b, __m256i shift) {
  const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(a, b));
  return _mm256_cvttps_epi32(_mm256_castsi256_ps(_mm256_add_epi32(bits, shift)));
}

// The sum as fp32 towards zero; bad: a bit for each lane outside the window or with an overflow.
inline __m256 end_eighth(const Eighth& lanes, uint32_t& bad) {
  const __m256i sum = _mm256_add_epi32(lanes.low, lanes.high);
  const __m256i overflow =
      _mm256_and_si256(_mm256_xor_si256(lanes.low, sum), _mm256_xor_si256(lanes.high, sum));
  const __m256i outside =
      _mm256_or_si256(lanes.shift, _mm256_cmpgt_epi32(lanes.shift, _mm256_set1_epi32(124 << 23)));
  bad = static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_or_si256(overflow, outside))));
  const __m256i unscale = _mm256_sub_epi32(_mm256_set1_epi32(127 << 23), lanes.shift);
  return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_castsi256_ps(unscale));
}

// All ones in the lanes whose products and accumulator are all zero.
inline __m256i zero_lanes(__m128i largest, const float* accumulators) {
  const __m256i products =
      _mm256_cmpeq_epi32(_mm256_cvtepi16_epi32(largest), _mm256_set1_epi32(-kExponentClamp));
  const __m256i magnitude = _mm256_and_si256(load(accumulators), _mm256_set1_epi32(0x7fffffff));
  return _mm256_and_si256(products, _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256()));
}

inline void end_lanes(const Eighth& lanes, __m128i largest, const float* row, const float* panel,
                      float* accumulators) {
  uint32_t bad;
  __m256 d = end_eighth(lanes, bad);
  if (__builtin_expect(bad != 0, 0)) {
    const __m256 zero = _mm256_castsi256_ps(zero_lanes(largest, accumulators));
    d = _mm256_andnot_ps(zero, d);
    bad &= ~static_cast<uint32_t>(_mm256_movemask_ps(zero));
    if (bad != 0) {
      float results[8];
      _mm256_storeu_ps(results, d);
      repair(row, panel, accumulators, bad, results);
      d = _mm256_loadu_ps(results);
    }
  }
  _mm256_storeu_ps(accumulators, d);
}

// One step of 16 columns.
template <int kRows>
inline void chain_step(const float* values, const uint32_t* exponents, int64_t row_stride,
                       float* accumulators, int64_t accumulator_stride, const float* panel_values,
                       const int16_t* panel_exponents) {
  __m256i largest[kRows];
  for (int r = 0; r < kRows; r++) largest[r] = _mm256_set1_epi16(-kExponentClamp);
#pragma GCC unroll 16
  for (int i = 0; i < kChainStep; i++) {
    const __m256i panel = load(panel_exponents + i * kPanelColumns);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      const __m256i row = _mm256_set1_epi32(static_cast<int>(exponents[r * row_stride + i]));
      largest[r] = _mm256_max_epi16(largest[r], _mm256_add_epi16(panel, row));
    }
  }
  Eighth left[kRows], right[kRows];
#pragma GCC unroll 2
  for (int r = 0; r < kRows; r++) {
    largest[r] = _mm256_min_epi16(largest[r], _mm256_set1_epi16(kExponentClamp));
    const float* c = accumulators + r * accumulator_stride;
    begin_eighth(left[r], _mm256_castsi256_si128(largest[r]), c);
    begin_eighth(right[r], _mm256_extracti128_si256(largest[r], 1), c + 8);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChainStep; i++) {
    const __m256 b_left = _mm256_loadu_ps(panel_values + i * kPanelColumns);
    const __m256 b_right = _mm256_loadu_ps(panel_values + i * kPanelColumns + 8);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      const __m256 a = _mm256_set1_ps(values[r * row_stride + i]);
      __m256i& sum_left = i < 8 ? left[r].low : left[r].high;
      __m256i& sum_right = i < 8 ? right[r].low : right[r].high;
      sum_left = _mm256_add_epi32(sum_left, scaled_product(a, b_left, left[r].shift));
      sum_right = _mm256_add_epi32(sum_right, scaled_product(a, b_right, right[r].shift));
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; r++) {
    const float* row = values + r * row_stride;
    float* c = accumulators + r * accumulator_stride;
    end_lanes(left[r], _mm256_castsi256_si128(largest[r]), row, panel_values, c);
    end_lanes(right[r], _mm256_extracti128_si256(largest[r], 1), row, panel_values + 8, c + 8);
  }
}

template <int kRows>
[[gnu::noinline]] void chain_rows(const ChainRows& rows, int64_t first, ChainPanel panel,
                                  int64_t steps) {
  const float* values = rows.values + first * rows.row_stride;
  const uint32_t* exponents = rows.exponents + first * rows.row_stride;
  float* accumulators = rows.accumulators + first * rows.accumulator_stride;
  for (int64_t column = 0; column < kPanelColumns; column += kHalfColumns) {
    for (int64_t step = 0; step < steps; step++) {
      const int64_t k = step * kChainStep;
      chain_step<kRows>(values + k, exponents + k, rows.row_stride, accumulators + column,
                        rows.accumulator_stride, panel.values + k * kPanelColumns + column,
                        panel.exponents + k * kPanelColumns + column);
    }
  }
}

void chain(const ChainRows& rows, ChainPanel panel, int64_t steps) {
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | kRoundTowardsZero);
  int64_t r = 0;
  for (; r + 2 <= rows.row_count; r += 2) chain_rows<2>(rows, r, panel, steps);
  if (r < rows.row_count) chain_rows<1>(rows, r, panel, steps);
  _mm_setcsr(mode);
}

}  // namespace

const ChainKernels kAvx2Chain = {expand_row, expand_panel, chain};

}  // namespace exact::cpu

#pragma GCC pop_options
#endif
