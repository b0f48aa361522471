// row_kernels.h owns the interface of everything beside the chain that is computed row by row:
// norms, rotation, pointwise functions, attention's softmax, log-probabilities. One table an
// instruction set, made from the same loops (row_kernels_body.h); equal bits.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact::cpu {

// The running state of attention's softmax for one query row (rule N5).
struct SoftmaxState {
  float max;
  float lane_sums[4];
  bool first_block;
};

struct RowKernels {
  // Rules N2, N3. width % 4 == 0; out may be x.
  void (*rms_norm)(const uint16_t* x, const uint16_t* weight, int64_t width, float epsilon,
                   NormForm form, uint16_t* out);
  // Rule N4, in place on one head; width is even and at most kMaxHeadWidth.
  void (*rotate_head)(uint16_t* head, int64_t width, const uint16_t* cosines,
                      const uint16_t* sines);
  // Rule N6.
  void (*silu_mul)(const uint16_t* gate, const uint16_t* up, int64_t count, uint16_t* out);
  void (*add)(uint16_t* x, const uint16_t* y, int64_t count);
  // Rule N1's end: out = bf16(sums (+ bias)); bias may be null.
  void (*finish_linear)(const float* sums, const uint16_t* bias, int64_t count, uint16_t* out);
  // Rule N5: one block of scores; returns the factor of what was summed before. block % 16 == 0.
  float (*softmax_block)(SoftmaxState& state, const float* scores, int64_t block, float scale,
                         uint16_t* probabilities);
  // values *= factor
  void (*scale)(float* values, int64_t count, float factor);
  // Rule N5's end: out = bf16(sums * (1 / sum of the lanes))
  void (*finish_attention)(const float* sums, const float* lane_sums, int64_t count, uint16_t* out);
  // The largest logit * factor; false when one of them, or of the products, is not finite.
  bool (*largest_logit)(const uint16_t* logits, int64_t count, float factor, float* largest);
  // Rule N7: sum of exp(logit * factor - largest) in the rule's order. Stores the terms where
  // `terms` is not null.
  float (*exp_sum)(const uint16_t* logits, int64_t count, float factor, float largest,
                   float* terms);
  // The same order over terms that are there already.
  float (*sum_terms)(const float* terms, int64_t count);
  // Rule N9: the integer weights of a row's terms, summed a block of kWeightBlock at a time.
  uint64_t (*weigh_terms)(const float* terms, int64_t count, uint64_t* block_sums);
  // Rule N9, of a row that is edited in fp32. x = logits
  void (*widen)(const uint16_t* logits, int64_t count, float* x);
  // x = x * factor, or -inf where the mask (null: none) lacks the token; the largest of them, -inf
  // when there is none. False when one that is allowed is not finite.
  bool (*temper)(float* x, int64_t count, float factor, const uint32_t* mask, float* largest);
  // exp_sum over z as it is, where -inf is a dropped token.
  float (*exp_terms)(const float* z, int64_t count, float largest, float* terms);
  // -(sum of exp(lp) * lp), lp = (logit - largest) - log_sum, in the order of rule N3.
  float (*entropy)(const uint16_t* logits, int64_t count, float largest, float log_sum);
};

inline constexpr int64_t kMaxHeadWidth = 256;
inline constexpr int64_t kWeightBlock = 1024;

// Null for an instruction set that this build or machine lacks.
const RowKernels* row_kernels(CpuIsa isa);

extern const RowKernels kScalarRows;
#if defined(__x86_64__)
extern const RowKernels kAvx2Rows;
extern const RowKernels kAvx512Rows;
#endif

}  // namespace exact::cpu
