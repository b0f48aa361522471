// The digest of a tensor is what kernels/base/digest.h says, in whatever pieces its bytes come.
#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/base/digest.h"

namespace exact {
namespace {

std::vector<std::byte> random_bytes(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Straight from the definition, with xxHash's own canonical form.
Digest128 by_definition(std::span<const std::byte> bytes) {
  std::vector<unsigned char> digests;
  for (size_t begin = 0; begin < bytes.size(); begin += 65'536) {
    XXH128_canonical_t canonical;
    const size_t size = std::min<size_t>(65'536, bytes.size() - begin);
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data() + begin, size));
    digests.insert(digests.end(), std::begin(canonical.digest), std::end(canonical.digest));
  }
  const XXH128_hash_t hash = XXH3_128bits(digests.data(), digests.size());
  return {hash.high64, hash.low64};
}

TEST(TensorDigest, IsThatOfItsDefinitionInWhateverPieces) {
  constexpr uint64_t kSeed = 20261125;
  std::mt19937_64 random(kSeed);
  for (const size_t size : {0u, 1u, 2u, 240u, 65'535u, 65'536u, 65'537u, 131'072u, 400'000u}) {
    const auto bytes = random_bytes(size, random());
    const Digest128 want = by_definition(bytes);
    EXPECT_EQ(tensor_digest(bytes), want) << size << " bytes, seed " << kSeed;

    TensorDigestStream stream;
    std::vector<Digest128> chunks;
    for (int round = 0; round < 3; round++) {
      stream.reset();
      for (std::span<const std::byte> rest = bytes; !rest.empty();) {
        const size_t most = round == 0 ? 3000 : 200'000;
        const size_t take = std::min<size_t>(rest.size(), 1 + random() % most);
        stream.update(rest.first(take));
        rest = rest.subspan(take);
        (void)stream.finish();  // may be asked at any time
      }
      EXPECT_EQ(stream.finish(), want) << size << " bytes in pieces, seed " << kSeed;
    }
    for (size_t i = 0; i < digest_chunk_count(size); i++) {
      const size_t begin = i * kDigestChunkBytes;
      chunks.push_back(
          digest128(std::span(bytes).subspan(begin, std::min(kDigestChunkBytes, size - begin))));
    }
    EXPECT_EQ(tensor_digest_of_chunks(chunks), want) << size << " bytes by chunks";
  }
}

TEST(TensorDigest, FindsAFlippedBitAndChunksThatChangedPlaces) {
  auto bytes = random_bytes(200'000, 7);
  const Digest128 before = tensor_digest(bytes);
  bytes[131'071] ^= std::byte{16};
  EXPECT_NE(tensor_digest(bytes), before);
  bytes[131'071] ^= std::byte{16};
  std::swap_ranges(bytes.begin(), bytes.begin() + 65'536, bytes.begin() + 65'536);
  EXPECT_NE(tensor_digest(bytes), before);
}

}  // namespace
}  // namespace exact
