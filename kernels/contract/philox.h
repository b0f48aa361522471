// philox.h owns rule N8: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011) and what its key and counter mean here. Randomness depends on the
// request's seed, the sample's index and the absolute position: on nothing that a schedule chooses.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"

namespace exact::contract {

struct PhiloxCounter {
  uint32_t word[4];
};

struct PhiloxKey {
  uint32_t word[2];
};

EXACT_HD PhiloxCounter philox4x32_round(PhiloxCounter counter, PhiloxKey key) {
  const uint64_t first = static_cast<uint64_t>(0xd2511f53u) * counter.word[0];
  const uint64_t second = static_cast<uint64_t>(0xcd9e8d57u) * counter.word[2];
  return {{static_cast<uint32_t>(second >> 32) ^ counter.word[1] ^ key.word[0],
           static_cast<uint32_t>(second),
           static_cast<uint32_t>(first >> 32) ^ counter.word[3] ^ key.word[1],
           static_cast<uint32_t>(first)}};
}

EXACT_HD PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; round++) {
    counter = philox4x32_round(counter, key);
    key.word[0] += 0x9e3779b9u;
    key.word[1] += 0xbb67ae85u;
  }
  return counter;
}

// What a block of random bits is for; one counter word, so that uses never share bits.
enum class RandomPurpose : uint32_t { draw = 0 };

// 64 random bits of one token: key = (seed low, seed high), counter = (position, sample index, 0,
// purpose).
EXACT_HD uint64_t random_bits64(uint64_t seed, uint32_t sample_index, int32_t position,
                                RandomPurpose purpose) {
  const PhiloxKey key = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  const PhiloxCounter counter = {
      {static_cast<uint32_t>(position), sample_index, 0u, static_cast<uint32_t>(purpose)}};
  const PhiloxCounter random = philox4x32_10(counter, key);
  return static_cast<uint64_t>(random.word[1]) << 32 | random.word[0];
}

}  // namespace exact::contract
