// The operations that move or multiply rows: embed, linear (rule N1).
#include <algorithm>

#include "kernels/base/bf16.h"
#include "kernels/base/check.h"
#include "kernels/contract/tensor_core.h"
#include "kernels/reference/reference.h"

namespace exact::reference {

void embed(std::span<const int32_t> ids, std::span<const uint16_t> table, int64_t width,
           std::span<uint16_t> out) {
  const auto columns = static_cast<size_t>(width);
  EXACT_CHECK(out.size() == ids.size() * columns, "embed: out is (T, D)");
  for (size_t t = 0; t < ids.size(); t++) {
    EXACT_CHECK(ids[t] >= 0, "embed: a negative token id");
    const auto id = static_cast<size_t>(ids[t]);
    EXACT_CHECK((id + 1) * columns <= table.size(), "embed: a token id beyond the table");
    std::copy_n(&table[id * columns], columns, &out[t * columns]);
  }
}

void linear(const LinearShape& shape, std::span<const uint16_t> x, std::span<const uint16_t> weight,
            std::span<const uint16_t> bias, std::span<uint16_t> out) {
  const int64_t n_count = shape.out_features;
  const int64_t k_count = shape.in_features;
  EXACT_CHECK(x.size() == static_cast<size_t>(shape.rows * k_count), "linear: x is (T, K)");
  EXACT_CHECK(weight.size() == static_cast<size_t>(n_count * k_count), "linear: weight is (N, K)");
  EXACT_CHECK(bias.empty() || bias.size() == static_cast<size_t>(n_count), "linear: bias is (N)");
  EXACT_CHECK(out.size() == static_cast<size_t>(shape.rows * n_count), "linear: out is (T, N)");
  for (int64_t t = 0; t < shape.rows; t++) {
    for (int64_t n = 0; n < n_count; n++) {
      const uint16_t* a = x.data() + t * k_count;
      const uint16_t* b = weight.data() + n * k_count;
      const float sum = shape.step == LinearStep::k16
                            ? contract::tensor_core_chain(a, 1, b, 1, k_count, 0.0f)
                            : contract::tensor_core_chain_k8(a, 1, b, 1, k_count, 0.0f);
      const float biased = bias.empty() ? sum : sum + bf16_to_float(bias[static_cast<size_t>(n)]);
      out[static_cast<size_t>(t * n_count + n)] = float_to_bf16(biased);
    }
  }
}

}  // namespace exact::reference
