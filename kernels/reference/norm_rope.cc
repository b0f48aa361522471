// RMSNorm (rules N2, N3) and the rotation of query and key heads (rule N4).
#include <vector>

#include "kernels/base/check.h"
#include "kernels/contract/norm.h"
#include "kernels/contract/pointwise.h"
#include "kernels/contract/reduce.h"
#include "kernels/reference/reference.h"

namespace exact::reference {
namespace {

void rms_norm_row(const uint16_t* x, std::span<const uint16_t> weight, float epsilon, NormForm form,
                  int64_t tensor_rows, uint16_t* out) {
  const auto width = static_cast<int64_t>(weight.size());
  const bool fused = form == NormForm::fused;
  const float mean =
      fused ? contract::fused_mean_square(x, width) : contract::mean_square(x, width, tensor_rows);
  const float factor = contract::rms_factor(mean, epsilon);
  for (size_t i = 0; i < weight.size(); i++)
    out[i] = fused ? contract::rms_norm_fused(x[i], weight[i], factor)
                   : contract::rms_norm_hf(x[i], weight[i], factor);
}

void rotate_head(uint16_t* head, size_t width, const uint16_t* cosines, const uint16_t* sines) {
  const std::vector<uint16_t> x(head, head + width);
  const size_t half = width / 2;
  for (size_t i = 0; i < width; i++) {
    const uint16_t partner = i < half ? static_cast<uint16_t>(x[i + half] ^ 0x8000) : x[i - half];
    head[i] = contract::rotate(x[i], partner, cosines[i], sines[i]);
  }
}

}  // namespace

void rms_norm(std::span<const uint16_t> x, std::span<const uint16_t> weight, float epsilon,
              NormForm form, std::span<uint16_t> out, int64_t tensor_rows) {
  const size_t width = weight.size();
  EXACT_CHECK(width > 0 && x.size() % width == 0 && x.size() == out.size(),
              "rms_norm: x and out are (T, D), weight is (D)");
  for (size_t begin = 0; begin < x.size(); begin += width)
    rms_norm_row(&x[begin], weight, epsilon, form, tensor_rows, &out[begin]);
}

void rope(std::span<uint16_t> x, std::span<const int32_t> positions,
          std::span<const uint16_t> cos_sin, int64_t head_width,
          std::span<const uint16_t> head_norm, float epsilon, NormForm form) {
  const auto width = static_cast<size_t>(head_width);
  EXACT_CHECK(!positions.empty() && x.size() % (positions.size() * width) == 0,
              "rope: x is (T, heads * E)");
  EXACT_CHECK(head_norm.empty() || head_norm.size() == width, "rope: head_norm is (E)");
  const size_t row_width = x.size() / positions.size();
  for (size_t t = 0; t < positions.size(); t++) {
    EXACT_CHECK(positions[t] >= 0, "rope: a negative position");
    const size_t table_row = static_cast<size_t>(positions[t]) * 2 * width;
    EXACT_CHECK(table_row + 2 * width <= cos_sin.size(), "rope: a position beyond the table");
    for (size_t begin = t * row_width; begin < (t + 1) * row_width; begin += width) {
      uint16_t* head = &x[begin];
      if (!head_norm.empty()) {
        const std::vector<uint16_t> raw(head, head + width);
        rms_norm_row(raw.data(), head_norm, epsilon, form, contract::kManyRows, head);
      }
      rotate_head(head, width, &cos_sin[table_row], &cos_sin[table_row + width]);
    }
  }
}

}  // namespace exact::reference
