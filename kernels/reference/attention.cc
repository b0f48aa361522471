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
  int64_t row_count;
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

// A block may reach beyond the sequence: values there are zeros, as their probabilities are.
std::vector<uint16_t> value_column(const HeadRows& values, int64_t first_key, size_t block, int d) {
  std::vector<uint16_t> column(block, 0);
  for (size_t i = 0; i < block; i++) {
    const int64_t key = first_key + static_cast<int64_t>(i);
    if (key < values.row_count) column[i] = values.data[key * values.stride + d];
  }
  return column;
}

void attend(const uint16_t* query, const HeadRows& keys, const HeadRows& values, int head_width,
            int64_t position, uint16_t* out) {
  const int block = contract::key_block(head_width);
  const float c = contract::score_scale(head_width);
  const auto block_size = static_cast<size_t>(block);
  std::vector<float> scores(block_size);
  std::vector<uint16_t> probabilities(block_size);
  std::vector<float> sums(static_cast<size_t>(head_width), 0.0f);
  contract::SoftmaxRow row = contract::new_softmax_row();
  for (int64_t first_key = position / block * block; first_key >= 0; first_key -= block) {
    score_block(query, keys, head_width, first_key, position, scores);
    const float factor =
        contract::softmax_block(row, scores.data(), block, c, probabilities.data());
    for (int d = 0; d < head_width; d++) {
      const std::vector<uint16_t> column = value_column(values, first_key, block_size, d);
      float& sum = sums[static_cast<size_t>(d)];
      sum = contract::tensor_core_chain(probabilities.data(), 1, column.data(), 1, block,
                                        sum * factor);
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
      const HeadRows key_rows_of_head{keys.data() + kv_head * width, kv_width, key_rows};
      const HeadRows value_rows_of_head{values.data() + kv_head * width, kv_width, key_rows};
      const int64_t at = t * query_width + h * width;
      attend(query.data() + at, key_rows_of_head, value_rows_of_head, shape.head_width,
             first_position + t, out.data() + at);
    }
  }
}

}  // namespace exact::reference
