// Rule N5's promises: a row of attention depends on its own prefix alone.
#include <gtest/gtest.h>

#include <cmath>
#include <span>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/reference/reference.h"
#include "tests/support/expect_bits.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

constexpr reference::AttentionShape kShape{.query_heads = 4, .kv_heads = 2, .head_width = 64};
constexpr size_t kQueryWidth = 256;
constexpr size_t kKvWidth = 128;

struct Inputs {
  std::vector<uint16_t> query;
  std::vector<uint16_t> keys;
  std::vector<uint16_t> values;
};

Inputs random_inputs(RandomData& random, size_t length, DataKind kind) {
  return {random.bf16s(kind, length * kQueryWidth), random.bf16s(kind, length * kKvWidth),
          random.bf16s(kind, length * kKvWidth)};
}

std::vector<uint16_t> attend(const Inputs& in, size_t first_row, size_t rows) {
  std::vector<uint16_t> out(rows * kQueryWidth);
  reference::attention(kShape,
                       std::span(in.query).subspan(first_row * kQueryWidth, rows * kQueryWidth),
                       static_cast<int32_t>(first_row), in.keys, in.values, out);
  return out;
}

TEST(AttentionPrefix, LaterKeysAndValuesChangeNothingWhateverTheyHold) {
  RandomData random;
  for (const size_t position : {0u, 5u, 127u, 128u, 130u}) {
    Inputs in = random_inputs(random, 300, DataKind::normal);
    const auto want = attend(in, position, 1);
    for (size_t i = (position + 1) * kKvWidth; i < in.keys.size(); i++) {
      in.keys[i] = random.bf16(DataKind::any_bits);
      in.values[i] = random.bf16(DataKind::any_bits);
    }
    EXPECT_BITS_EQ(attend(in, position, 1), want, random.describe());
  }
}

TEST(AttentionPrefix, ChunksHaveTheBitsOfTheWhole) {
  RandomData random;
  for (const DataKind kind : kFiniteDataKinds) {
    const Inputs in = random_inputs(random, 160, kind);
    const auto whole = attend(in, 0, 160);
    size_t begin = 0;
    for (const size_t rows : {1u, 63u, 64u, 2u, 30u}) {
      EXPECT_BITS_EQ(attend(in, begin, rows),
                     std::span(whole).subspan(begin * kQueryWidth, rows * kQueryWidth),
                     random.describe() + " " + std::string(data_kind_name(kind)));
      begin += rows;
    }
  }
}

TEST(Attention, OneKeyGivesItsValue) {
  RandomData random;
  const Inputs in = random_inputs(random, 1, DataKind::normal);
  const auto out = attend(in, 0, 1);
  for (size_t h = 0; h < 4; h++)
    for (size_t d = 0; d < 64; d++)
      EXPECT_EQ(out[h * 64 + d], in.values[h / 2 * 64 + d]) << random.describe();
}

// Probabilities are rounded to bf16 (relative error 2^-9) and so is the result: with values of at
// most 4, an error of 4 * (2^-8) stays below 2^-6 + half a unit of the result.
TEST(Attention, IsCloseToTheFormulaInDouble) {
  RandomData random;
  const Inputs in = random_inputs(random, 200, DataKind::normal);
  const size_t position = 199;
  const auto out = attend(in, position, 1);
  for (size_t h = 0; h < 4; h++) {
    std::vector<double> weights;
    double sum = 0;
    for (size_t s = 0; s <= position; s++) {
      double score = 0;
      for (size_t d = 0; d < 64; d++)
        score += static_cast<double>(bf16_to_float(in.query[position * kQueryWidth + h * 64 + d])) *
                 static_cast<double>(bf16_to_float(in.keys[s * kKvWidth + h / 2 * 64 + d]));
      weights.push_back(std::exp(score / 8));
      sum += weights.back();
    }
    for (size_t d = 0; d < 64; d++) {
      double want = 0;
      for (size_t s = 0; s <= position; s++)
        want += weights[s] / sum *
                static_cast<double>(bf16_to_float(in.values[s * kKvWidth + h / 2 * 64 + d]));
      EXPECT_NEAR(static_cast<double>(bf16_to_float(out[h * 64 + d])), want, 0x1p-5)
          << random.describe() << " head " << h << " element " << d;
    }
  }
}

}  // namespace
}  // namespace exact
