// pointwise.h owns rule N6 and the rotation of rule N4: where elementwise operations round.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/exp_log.h"

namespace exact::contract {

EXACT_HD uint16_t add(uint16_t x, uint16_t y) {
  return float_to_bf16(bf16_to_float(x) + bf16_to_float(y));
}

EXACT_HD uint16_t multiply(uint16_t x, uint16_t y) {
  return float_to_bf16(bf16_to_float(x) * bf16_to_float(y));
}

// bf16(g / (1 + exp(-g))), an IEEE division.
EXACT_HD uint16_t silu(uint16_t gate) {
  const float g = bf16_to_float(gate);
  return float_to_bf16(g / (1.0f + exp(-g)));
}

EXACT_HD uint16_t silu_mul(uint16_t gate, uint16_t up) {
  return multiply(silu(gate), up);
}

// Rotates one element: `partner` is the element E/2 away, negated for the first half of a head.
EXACT_HD uint16_t rotate(uint16_t x, uint16_t partner, uint16_t cosine, uint16_t sine) {
  return add(multiply(x, cosine), multiply(partner, sine));
}

}  // namespace exact::contract
