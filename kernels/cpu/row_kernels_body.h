// row_kernels_body.h owns the loops of row_kernels.h. Each instruction set's file includes it once,
// inside an anonymous namespace of exact::cpu, so that each has its own copy compiled for itself.
// It includes nothing and uses no std:: template: those could be shared across instruction sets.
//
// Partial sums that the rules keep per thread are arrays here, one element a thread, and a loop
// over threads is a vector loop: the order inside each partial sum is the rule's.
#pragma once

// ---- rules N2, N3

// Squares of elements [begin, begin + count) added to sums[0], sums[1], ...
inline void add_squares(const uint16_t* x, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; i++) {
    const float value = bf16_to_float(x[i]);
    sums[i] = sums[i] + value * value;
  }
}

// Grouped: accumulator j of thread t is [4 t + j]. Else accumulator j of thread t is [T j + t].
inline float total_of(const contract::RowSumOrder& order, const float* sums) {
  float threads[contract::kMaxRowThreads];
  const int64_t thread_step = order.grouped ? 4 : 1;
  const int64_t turn_step = order.grouped ? 1 : order.threads;
  for (int t = 0; t < order.threads; t++) {
    const float* own = sums + t * thread_step;
    threads[t] = ((own[0] + own[turn_step]) + own[2 * turn_step]) + own[3 * turn_step];
  }
  for (int warp = 0; warp < order.threads; warp += order.warp_width) {
    contract::halve(threads + warp, order.warp_width, 1);
  }
  return contract::halve(threads, order.threads / order.warp_width, order.warp_width);
}

inline float mean_square(const uint16_t* x, int64_t width) {
  const contract::RowSumOrder order = contract::row_sum_order(width, contract::kManyRows);
  float sums[4 * contract::kMaxRowThreads] = {};
  const int64_t round = order.grouped ? 4 * order.threads : order.threads;
  for (int64_t i = 0; i < width; i += round) {
    const int64_t count = width - i < round ? width - i : round;
    const int64_t turn = order.grouped ? 0 : i / round % 4;
    add_squares(x + i, count, sums + turn * round);
  }
  return total_of(order, sums) * (1.0f / static_cast<float>(width));
}

inline float fused_mean_square(const uint16_t* x, int64_t width) {
  float sums[128] = {};
  for (int64_t i = 0; i < width; i += 512) {
    const int64_t groups = (width - i < 512 ? width - i : 512) / 4;
    for (int64_t t = 0; t < groups; t++) {
      float sum = sums[t];
      for (int64_t j = 0; j < 4; j++) {
        const float value = bf16_to_float(x[i + 4 * t + j]);
        sum = contract::fma_rn(value, value, sum);
      }
      sums[t] = sum;
    }
  }
  for (int warp = 0; warp < 128; warp += 32) contract::halve(sums + warp, 32, 1);
  return contract::halve(sums, 4, 32) / static_cast<float>(width);
}

void rms_norm(const uint16_t* x, const uint16_t* weight, int64_t width, float epsilon,
              NormForm form, uint16_t* out) {
  if (form == NormForm::fused) {
    const float factor = contract::rms_factor(fused_mean_square(x, width), epsilon);
    for (int64_t i = 0; i < width; i++) {
      out[i] = contract::rms_norm_fused(x[i], weight[i], factor);
    }
  } else {
    const float factor = contract::rms_factor(mean_square(x, width), epsilon);
    for (int64_t i = 0; i < width; i++) out[i] = contract::rms_norm_hf(x[i], weight[i], factor);
  }
}

// ---- rules N4, N6

void rotate_head(uint16_t* head, int64_t width, const uint16_t* cosines, const uint16_t* sines) {
  uint16_t x[kMaxHeadWidth];
  const int64_t half = width / 2;
  for (int64_t i = 0; i < width; i++) x[i] = head[i];
  for (int64_t i = 0; i < half; i++) {
    const auto partner = static_cast<uint16_t>(x[i + half] ^ 0x8000);
    head[i] = contract::rotate(x[i], partner, cosines[i], sines[i]);
  }
  for (int64_t i = half; i < width; i++) {
    head[i] = contract::rotate(x[i], x[i - half], cosines[i], sines[i]);
  }
}

void silu_mul(const uint16_t* gate, const uint16_t* up, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i++) out[i] = contract::silu_mul(gate[i], up[i]);
}

void add(uint16_t* x, const uint16_t* y, int64_t count) {
  for (int64_t i = 0; i < count; i++) x[i] = contract::add(x[i], y[i]);
}

void finish_linear(const float* sums, const uint16_t* bias, int64_t count, uint16_t* out) {
  if (bias == nullptr) {
    for (int64_t i = 0; i < count; i++) out[i] = float_to_bf16(sums[i]);
  } else {
    for (int64_t i = 0; i < count; i++) out[i] = float_to_bf16(sums[i] + bf16_to_float(bias[i]));
  }
}

// ---- rule N5

inline float largest_of(const float* values, int64_t count, float start) {
  float largest[16];
  for (int j = 0; j < 16; j++) largest[j] = start;
  for (int64_t i = 0; i < count; i += 16) {
    for (int64_t j = 0; j < 16; j++) {
      largest[j] = values[i + j] > largest[j] ? values[i + j] : largest[j];
    }
  }
  float result = start;
  for (int j = 0; j < 16; j++) result = largest[j] > result ? largest[j] : result;
  return result;
}

float softmax_block(SoftmaxState& state, const float* scores, int64_t block, float scale,
                    uint16_t* probabilities) {
  const float largest = largest_of(scores, block, state.max);
  const float factor =
      state.first_block ? 1.0f : contract::rescale_factor(state.max, largest, scale);
  const float scaled_max = largest * scale;
  float p[contract::kMaxKeyBlock];
  for (int64_t i = 0; i < block; i++) p[i] = contract::probability(scores[i], scale, scaled_max);
  for (int64_t i = 0; i < block; i++) probabilities[i] = float_to_bf16(p[i]);
  float* sums = state.lane_sums;
  for (int t = 0; t < 4; t++) {
    sums[t] = state.first_block ? p[2 * t] : contract::fma_rn(sums[t], factor, p[2 * t]);
    sums[t] = sums[t] + p[2 * t + 1];
  }
  for (int64_t i = 8; i < block; i += 8) {
    for (int t = 0; t < 4; t++) sums[t] = sums[t] + p[i + 2 * t];
    for (int t = 0; t < 4; t++) sums[t] = sums[t] + p[i + 2 * t + 1];
  }
  state.max = largest;
  state.first_block = false;
  return factor;
}

void scale(float* values, int64_t count, float factor) {
  for (int64_t i = 0; i < count; i++) values[i] = values[i] * factor;
}

void finish_attention(const float* sums, const float* lane_sums, int64_t count, uint16_t* out) {
  const float inverse = 1.0f / contract::softmax_sum(lane_sums);
  for (int64_t i = 0; i < count; i++) out[i] = float_to_bf16(sums[i] * inverse);
}

// ---- rules N7, N9

bool largest_logit(const uint16_t* logits, int64_t count, float factor, float* largest) {
  float best[16];
  uint32_t bad[16] = {};
  for (int j = 0; j < 16; j++) best[j] = float_from_bits(0xff800000u);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t lanes = count - i < 16 ? count - i : 16;
    for (int64_t j = 0; j < lanes; j++) {
      const float value = bf16_to_float(logits[i + j]);
      const float scaled = value * factor;
      best[j] = scaled > best[j] ? scaled : best[j];
      bad[j] |= static_cast<uint32_t>((float_bits(value) & 0x7f800000u) == 0x7f800000u) |
                static_cast<uint32_t>((float_bits(scaled) & 0x7f800000u) == 0x7f800000u);
    }
  }
  float result = best[0];
  uint32_t any = bad[0];
  for (int j = 1; j < 16; j++) {
    result = best[j] > result ? best[j] : result;
    any |= bad[j];
  }
  *largest = result;
  return any == 0;
}

// Adds terms to the partial sums of their threads: the rule's order, a piece of the row at a time.
inline void add_terms_strided(const float* terms, int64_t count, int64_t threads, float* sums) {
  for (int64_t i = 0; i < count; i += threads) {
    const int64_t lanes = count - i < threads ? count - i : threads;
    for (int64_t t = 0; t < lanes; t++) sums[t] = sums[t] + terms[i + t];
  }
}

inline void add_terms_grouped(const float* terms, int64_t count, float* sums) {
  for (int64_t t = 0; t < count / 4; t++) {
    const float* group = terms + 4 * t;
    sums[t] = (((sums[t] + group[0]) + group[1]) + group[2]) + group[3];
  }
}

constexpr int64_t kTermBlock = 4 * contract::kLogSumThreads;

// Terms [begin, begin + count) of a row; count is kTermBlock except at the row's end.
inline void add_terms(contract::LogSumForm form, const float* terms, int64_t count, float* sums) {
  switch (form) {
    case contract::LogSumForm::warp:
      return add_terms_strided(terms, count, 32, sums);
    case contract::LogSumForm::strided:
      return add_terms_strided(terms, count, contract::kLogSumThreads, sums);
    case contract::LogSumForm::grouped:
      return add_terms_grouped(terms, count, sums);
    default:
      if (count == kTermBlock) return add_terms_grouped(terms, count, sums);
      return add_terms_strided(terms, count, contract::kLogSumThreads, sums);
  }
}

inline float halve_sums(contract::LogSumForm form, float* sums) {
  const int threads = contract::log_sum_threads(form);
  for (int warp = 0; warp < threads; warp += 32) contract::halve(sums + warp, 32, 1);
  return contract::halve(sums, threads / 32, 32);
}

float exp_sum(const uint16_t* logits, int64_t count, float factor, float largest, float* terms) {
  const contract::LogSumForm form = contract::log_sum_form(count);
  float sums[contract::kLogSumThreads] = {};
  float block[kTermBlock];
  for (int64_t i = 0; i < count; i += kTermBlock) {
    const int64_t size = count - i < kTermBlock ? count - i : kTermBlock;
    float* to = terms == nullptr ? block : terms + i;
    for (int64_t j = 0; j < size; j++) {
      to[j] = contract::exp(bf16_to_float(logits[i + j]) * factor - largest);
    }
    add_terms(form, to, size, sums);
  }
  return halve_sums(form, sums);
}

float sum_terms(const float* terms, int64_t count) {
  const contract::LogSumForm form = contract::log_sum_form(count);
  float sums[contract::kLogSumThreads] = {};
  for (int64_t i = 0; i < count; i += kTermBlock) {
    add_terms(form, terms + i, count - i < kTermBlock ? count - i : kTermBlock, sums);
  }
  return halve_sums(form, sums);
}

// contract::token_weight of exp(z - z_max) that is there already; at most 2^40.
inline uint64_t weight_of_term(float term) {
  return static_cast<uint64_t>(static_cast<int64_t>(term * 0x1p40f));
}

uint64_t weigh_terms(const float* terms, int64_t count, uint64_t* block_sums) {
  uint64_t total = 0;
  for (int64_t i = 0; i < count; i += kWeightBlock) {
    const int64_t size = count - i < kWeightBlock ? count - i : kWeightBlock;
    uint64_t sum = 0;
    for (int64_t j = 0; j < size; j++) sum += weight_of_term(terms[i + j]);
    block_sums[i / kWeightBlock] = sum;
    total += sum;
  }
  return total;
}

// ---- rule N9: rows that are edited and reported

void widen(const uint16_t* logits, int64_t count, float* x) {
  for (int64_t i = 0; i < count; i++) x[i] = bf16_to_float(logits[i]);
}

bool temper(float* x, int64_t count, float factor, const uint32_t* mask, float* largest) {
  constexpr uint32_t kMinusInfinityBits = 0xff800000u;
  float best[32];
  uint32_t bad[32] = {};
  for (int j = 0; j < 32; j++) best[j] = float_from_bits(kMinusInfinityBits);
  for (int64_t i = 0; i < count; i += 32) {
    const uint32_t allowed = mask == nullptr ? ~0u : mask[i / 32];
    const int64_t lanes = count - i < 32 ? count - i : 32;
    for (int64_t j = 0; j < lanes; j++) {
      const uint32_t keep = 0u - (allowed >> j & 1u);
      const uint32_t scaled = float_bits(x[i + j] * factor);
      bad[j] |= static_cast<uint32_t>((scaled & keep & 0x7f800000u) == 0x7f800000u);
      const float z = float_from_bits((scaled & keep) | (kMinusInfinityBits & ~keep));
      best[j] = z > best[j] ? z : best[j];
      x[i + j] = z;
    }
  }
  float result = best[0];
  uint32_t any = bad[0];
  for (int j = 1; j < 32; j++) {
    result = best[j] > result ? best[j] : result;
    any |= bad[j];
  }
  *largest = result;
  return any == 0;
}

float exp_terms(const float* z, int64_t count, float largest, float* terms) {
  for (int64_t i = 0; i < count; i++) terms[i] = contract::exp(z[i] - largest);
  return sum_terms(terms, count);
}

// exp(lp) * lp of elements [begin, begin + count) added to sums[0], sums[1], ...
inline void add_entropy_terms(const uint16_t* logits, int64_t count, float largest, float log_sum,
                              float* sums) {
  for (int64_t i = 0; i < count; i++) {
    const float logprob = contract::log_softmax_value(bf16_to_float(logits[i]), {largest, log_sum});
    sums[i] = sums[i] + contract::exp(logprob) * logprob;
  }
}

float entropy(const uint16_t* logits, int64_t count, float largest, float log_sum) {
  const contract::RowSumOrder order = contract::row_sum_order(count, contract::kManyRows);
  float sums[4 * contract::kMaxRowThreads] = {};
  const int64_t round = order.grouped ? 4 * order.threads : order.threads;
  for (int64_t i = 0; i < count; i += round) {
    const int64_t turn = order.grouped ? 0 : i / round % 4;
    add_entropy_terms(logits + i, count - i < round ? count - i : round, largest, log_sum,
                      sums + turn * round);
  }
  return contract::canonical_nan(-total_of(order, sums));
}
