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

// Every row; under a sanitizer, which slows the reference down tenfold, every 16th.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kRowStep = 16;
#else
constexpr size_t kRowStep = 1;
#endif

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
    for (size_t t = first; t < length; t += 2 * kRowStep)
      reference::attention(shape, std::span(q).subspan(t * row_width, row_width),
                           static_cast<int32_t>(t), k, v,
                           std::span(out).subspan(t * row_width, row_width));
  };
  std::thread other_rows(run, kRowStep);
  run(0);
  other_rows.join();
  const auto all = golden.values<uint16_t>(key.text);
  ASSERT_EQ(all.size(), stored * length * width) << key.text;
  std::vector<uint16_t> got;
  std::vector<uint16_t> want;
  for (size_t h = 0; h < stored; h++) {
    for (size_t t = 0; t < length; t += kRowStep) {
      const auto row = out.begin() + static_cast<std::ptrdiff_t>((t * heads + h) * width);
      const auto golden_row = all.begin() + static_cast<std::ptrdiff_t>((h * length + t) * width);
      got.insert(got.end(), row, row + static_cast<std::ptrdiff_t>(width));
      want.insert(want.end(), golden_row, golden_row + static_cast<std::ptrdiff_t>(width));
    }
  }
  EXPECT_BITS_EQ(got, want, key.text);
}

}  // namespace exact
