#include "tests/support/golden_attention.h"

#include <algorithm>
#include <span>
#include <thread>
#include <vector>

#include "kernels/contract/shape.h"
#include "kernels/reference/reference.h"
#include "tests/support/expect_bits.h"

namespace exact {
namespace {

// (heads, length, width) -> (length, heads * width)
std::vector<uint16_t> by_position(const std::vector<uint16_t>& x, size_t heads, size_t length,
                                  size_t width) {
  std::vector<uint16_t> out(heads * length * width);
  for (size_t h = 0; h < heads; h++)
    for (size_t t = 0; t < length; t++)
      std::copy_n(&x[(h * length + t) * width], width, &out[(t * heads + h) * width]);
  return out;
}

}  // namespace

void check_attention_golden(const GoldenFile& golden, const GoldenKey& key,
                            const AttentionGolden& about) {
  const auto width = static_cast<size_t>(key.numbers[0]);
  const auto length = static_cast<size_t>(about.length);
  const int32_t group = about.query_heads / about.kv_heads;
  const auto stored = static_cast<size_t>(about.stored_heads);
  // The stored query heads are the first; only their kv heads are needed.
  const size_t kv_heads = (stored + static_cast<size_t>(group) - 1) / static_cast<size_t>(group);
  const size_t heads = kv_heads * static_cast<size_t>(group);
  const auto input = [&](const char* name, size_t count, double range) {
    return hash_bf16(key.input(about.prefix + name), about.seed, count * length * width, -range,
                     range);
  };
  const auto q = by_position(input(".q", heads, about.range), heads, length, width);
  const auto k = by_position(input(".k", kv_heads, about.range), kv_heads, length, width);
  const auto v = by_position(input(".v", kv_heads, 1), kv_heads, length, width);
  std::vector<uint16_t> out(q.size());
  const reference::AttentionShape shape{static_cast<int32_t>(heads), static_cast<int32_t>(kv_heads),
                                        static_cast<int32_t>(width)};
  EXPECT_TRUE(
      contract::check_attention_shape(about.query_heads, about.kv_heads, shape.head_width).is_ok())
      << key.text;
  // Two threads share the rows, by turns: later rows cost more.
  const size_t row_width = heads * width;
  const auto run = [&](size_t first) {
    for (size_t t = first; t < length; t += 2)
      reference::attention(shape, std::span(q).subspan(t * row_width, row_width),
                           static_cast<int32_t>(t), k, v,
                           std::span(out).subspan(t * row_width, row_width));
  };
  std::thread odd_rows(run, 1);
  run(0);
  odd_rows.join();
  std::vector<uint16_t> got(stored * length * width);
  for (size_t h = 0; h < stored; h++)
    for (size_t t = 0; t < length; t++)
      std::copy_n(&out[(t * heads + h) * width], width, &got[(h * length + t) * width]);
  EXPECT_BITS_EQ(got, golden.values<uint16_t>(key.text), key.text);
}

}  // namespace exact
