// Where numbers come from: Philox against the vectors of its authors, the input hash against stored
// inputs, and what a draw's random bits depend on.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "kernels/contract/hash_init.h"
#include "kernels/contract/philox.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"

namespace exact {
namespace {

using contract::HashStream;
using contract::PhiloxCounter;
using contract::PhiloxKey;

std::vector<uint32_t> philox(PhiloxCounter counter, PhiloxKey key) {
  const PhiloxCounter out = contract::philox4x32_10(counter, key);
  return {out.word[0], out.word[1], out.word[2], out.word[3]};
}

// The known answers that the authors publish with Random123 (kat_vectors, philox4x32 10).
TEST(Philox, HasTheKnownAnswers) {
  constexpr uint32_t ones = 0xffffffffu;
  EXPECT_EQ(philox({{0, 0, 0, 0}}, {{0, 0}}),
            (std::vector<uint32_t>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(philox({{ones, ones, ones, ones}}, {{ones, ones}}),
            (std::vector<uint32_t>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(
      philox({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, {{0xa4093822u, 0x299f31d0u}}),
      (std::vector<uint32_t>{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(Philox, KeyIsTheSeedAndCounterThePositionAndSample) {
  const auto draw = contract::RandomPurpose::draw;
  const auto words = philox({{41, 7, 0, 0}}, {{0x89abcdefu, 0x01234567u}});
  EXPECT_EQ(contract::random_bits64(0x0123456789abcdefu, 7, 41, draw),
            static_cast<uint64_t>(words[1]) << 32 | words[0]);
}

TEST(Philox, SeedSampleAndPositionEachChangeTheBits) {
  const auto draw = contract::RandomPurpose::draw;
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 16; seed++)
    for (uint32_t sample = 0; sample < 16; sample++)
      for (int32_t position = 0; position < 16; position++)
        seen.insert(contract::random_bits64(seed << 28, sample, position, draw));
  EXPECT_EQ(seen.size(), 16u * 16u * 16u);
}

TEST(HashStream, RebuildsTheStoredInputs) {
  for (const std::string model : {"llama-d64", "qwen2-d64", "qwen3-d64", "qwen3-d128"}) {
    std::ifstream file(std::string(EXACT_GOLDEN_DIR) + "/" + model + "/config.json");
    const auto config = nlohmann::json::parse(file);
    const uint64_t seed = config.at("_golden").at("seed");
    const uint32_t vocabulary = config.at("vocab_size");
    const GoldenFile golden(model + "/golden.safetensors");
    const auto want = golden.values<int32_t>("input_ids");
    const HashStream stream("input_ids", seed);
    std::vector<int32_t> got;
    for (size_t i = 0; i < want.size(); i++)
      got.push_back(static_cast<int32_t>(stream.bits24(i) % vocabulary));
    EXPECT_BITS_EQ(got, want, model);
  }
}

TEST(HashStream, UniformStaysInItsRangeAndNamesDiffer) {
  const HashStream stream("a", 1);
  const HashStream other("b", 1);
  const HashStream reseeded("a", 2);
  int equal = 0;
  for (uint64_t i = 0; i < 1000; i++) {
    EXPECT_GE(stream.uniform(i, -2, 3), -2.0f);
    EXPECT_LE(stream.uniform(i, -2, 3), 3.0f);
    equal += stream.bits24(i) == other.bits24(i) || stream.bits24(i) == reseeded.bits24(i);
  }
  EXPECT_LT(equal, 3);
}

}  // namespace
}  // namespace exact
