// Rule N5: causal attention of one sequence over contiguous keys and values.
#include "kernels/contract/attention.h"

#include <algorithm>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/contract/tensor_core.h"
#include "kernels/reference/reference.h"

namespace exact::reference {
namespace {

// The keys or values of one head: row s lies at data + s * stride.
struct HeadRows {
  const uint16_t* data;
  int64_t stride;
};

// Scores of one block; keys after the query's position are masked.
void score_block(const uint16_t* query, const HeadRows& keys, int head_width, int64_t first_key,
                 int64_t position, std::vector<float>& scores) {
  for (size_t i = 0; i < scores.size(); i++) {
    const int64_t key = first_key + static_cast<int64_t>(i);
    scores[i] = key > position ? float_from_bits(0xff800000u)
                               : contract::tensor_core_chain(
                                     query, 1, keys.data + key * keys.stride, 1, head_width, 0.0f);
  }
}

void attend(const uint16_t* query, const HeadRows& keys, const HeadRows& values, int head_width,
            int64_t position, uint16_t* out) {
  const int block = contract::key_block(head_width);
  const float c = contract::score_scale(head_width);
  std::vector<float> scores(static_cast<size_t>(block));
  std::vector<uint16_t> probabilities(static_cast<size_t>(block));
  std::vector<float> sums(static_cast<size_t>(head_width), 0.0f);
  contract::SoftmaxRow row = contract::new_softmax_row();
  for (int64_t first_key = position / block * block; first_key >= 0; first_key -= block) {
    score_block(query, keys, head_width, first_key, position, scores);
    const float factor =
        contract::softmax_block(row, scores.data(), block, c, probabilities.data());
    // Keys after the query's position take no part, not even with the exponent of their zero
    // product: a row depends on its own prefix alone.
    const int64_t seen = std::min<int64_t>(block, position + 1 - first_key);
    for (int d = 0; d < head_width; d++) {
      float& sum = sums[static_cast<size_t>(d)];
      sum = contract::tensor_core_chain(probabilities.data(), 1,
                                        values.data + first_key * values.stride + d, values.stride,
                                        seen, sum * factor);
    }
  }
  const float inverse = 1.0f / contract::softmax_sum(row.lane_sums);
  for (size_t d = 0; d < sums.size(); d++) out[d] = float_to_bf16(sums[d] * inverse);
}

}  // namespace

void attention(const AttentionShape& shape, std::span<const uint16_t> query, int32_t first_position,
               std::span<const uint16_t> keys, std::span<const uint16_t> values,
               std::span<uint16_t> out) {
  const int64_t width = shape.head_width;
  const int64_t query_width = shape.query_heads * width;
  const int64_t kv_width = shape.kv_heads * width;
  EXACT_CHECK(contract::key_block(shape.head_width) != 0,
              "attention: not a head width of the rule");
  EXACT_CHECK(shape.kv_heads > 0 && shape.query_heads % shape.kv_heads == 0,
              "attention: query heads are a multiple of kv heads");
  EXACT_CHECK(query.size() == out.size() && keys.size() == values.size(),
              "attention: query and out, keys and values have one shape each");
  const int64_t rows = static_cast<int64_t>(query.size()) / query_width;
  const int64_t key_rows = static_cast<int64_t>(keys.size()) / kv_width;
  EXACT_CHECK(first_position >= 0 && first_position + rows <= key_rows,
              "attention: a query without its own key");
  for (int64_t t = 0; t < rows; t++) {
    for (int64_t h = 0; h < shape.query_heads; h++) {
      const int64_t kv_head = h / (shape.query_heads / shape.kv_heads);
      const HeadRows head_keys{keys.data() + kv_head * width, kv_width};
      const HeadRows head_values{values.data() + kv_head * width, kv_width};
      const int64_t at = t * query_width + h * width;
      attend(query.data() + at, head_keys, head_values, shape.head_width, first_position + t,
             out.data() + at);
    }
  }
}

}  // namespace exact::reference
