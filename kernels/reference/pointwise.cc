// Rule N6.
#include "kernels/contract/pointwise.h"

#include "kernels/base/check.h"
#include "kernels/reference/reference.h"

namespace exact::reference {

void silu_mul(std::span<const uint16_t> gate, std::span<const uint16_t> up,
              std::span<uint16_t> out) {
  EXACT_CHECK(gate.size() == up.size() && gate.size() == out.size(), "silu_mul: shapes differ");
  for (size_t i = 0; i < gate.size(); i++) out[i] = contract::silu_mul(gate[i], up[i]);
}

void add(std::span<uint16_t> x, std::span<const uint16_t> y) {
  EXACT_CHECK(x.size() == y.size(), "add: shapes differ");
  for (size_t i = 0; i < x.size(); i++) x[i] = contract::add(x[i], y[i]);
}

}  // namespace exact::reference
