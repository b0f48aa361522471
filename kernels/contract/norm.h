// norm.h owns the roundings of rule N2: RMSNorm as the modules of Llama and Qwen write it, and as
// F.rms_norm computes it.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/reduce.h"
#include "kernels/contract/special_unit.h"

namespace exact::contract {

// The factor of a row, from its mean of squares in the same form.
EXACT_HD float rms_factor(float mean_square, float epsilon) {
  return rsqrt(mean_square + epsilon);
}

// Form `hf`: bf16(w * bf16(x * r)).
EXACT_HD uint16_t rms_norm_hf(uint16_t x, uint16_t weight, float factor) {
  return float_to_bf16(bf16_to_float(weight) * round_to_bf16(bf16_to_float(x) * factor));
}

// Form `fused`: bf16(w * (r * x)).
EXACT_HD uint16_t rms_norm_fused(uint16_t x, uint16_t weight, float factor) {
  return float_to_bf16(bf16_to_float(weight) * (factor * bf16_to_float(x)));
}

}  // namespace exact::contract
