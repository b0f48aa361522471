// Weights that are copied on the GPU arrive bit for bit, with xxHash's own digests.
#include <algorithm>
#include <random>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/tensor_digests.h"
#include "tests/cuda/device.h"

namespace exact {
namespace {

using cuda_test::DeviceVector;

std::vector<uint64_t> random_words(size_t bytes, std::mt19937_64& random) {
  std::vector<uint64_t> words(bytes / 8);
  for (uint64_t& word : words) word = random();
  return words;
}

TEST(DigestCopy, OfEverySizeIsTheHostsDigestAndTheBytes) {
  if (const auto why = cuda_test::missing_device(); !why.empty()) GTEST_SKIP() << why;
  auto backend = make_cuda_backend();
  ASSERT_TRUE(backend.is_ok()) << backend.status().to_string();
  std::mt19937_64 random(cuda_test::kSeed);
  std::vector<size_t> sizes;
  for (size_t bytes = 16; bytes <= 2'400; bytes += 16) sizes.push_back(bytes);
  for (const size_t near : {65'536u, 131'072u, 655'360u}) {
    for (const int step : {-1'024, -64, -16, 0, 16, 64, 240, 256, 1'024}) {
      sizes.push_back(static_cast<size_t>(static_cast<int64_t>(near) + step));
    }
  }
  for (int i = 0; i < 40; i++) sizes.push_back(16 * (1 + random() % 100'000));
  std::shuffle(sizes.begin(), sizes.end(), random);

  std::vector<std::vector<uint64_t>> hosts;
  std::vector<std::unique_ptr<DeviceVector<uint64_t>>> from, to;
  std::vector<std::vector<Digest128>> chunks;
  std::vector<DeviceCopy> copies;
  std::vector<std::span<const std::byte>> tensors;
  for (const size_t bytes : sizes) {
    hosts.push_back(random_words(bytes, random));
    from.push_back(std::make_unique<DeviceVector<uint64_t>>(hosts.back()));
    to.push_back(std::make_unique<DeviceVector<uint64_t>>(bytes / 8));
    chunks.emplace_back(digest_chunk_count(bytes));
    const auto* data = reinterpret_cast<const std::byte*>(from.back()->data());
    tensors.emplace_back(data, bytes);
    copies.push_back({data, reinterpret_cast<std::byte*>(to.back()->data()), bytes, chunks.back()});
  }
  ASSERT_TRUE((*backend)->start_copies(copies).is_ok());
  ASSERT_TRUE((*backend)->finish_copies().is_ok());
  const auto digests = cuda::device_tensor_digests(tensors);
  ASSERT_TRUE(digests.is_ok()) << digests.status().to_string();
  for (size_t i = 0; i < sizes.size(); i++) {
    const Digest128 want = tensor_digest(std::as_bytes(std::span(hosts[i])));
    EXPECT_EQ(to[i]->to_host(), hosts[i]) << sizes[i] << " bytes, seed " << cuda_test::kSeed;
    EXPECT_EQ(tensor_digest_of_chunks(chunks[i]), want) << sizes[i] << " bytes";
    EXPECT_EQ((*digests)[i], want) << sizes[i] << " bytes, digest only";
  }
}

TEST(DigestCopy, ATensorThatIsNotAlignedIsInvalid) {
  if (const auto why = cuda_test::missing_device(); !why.empty()) GTEST_SKIP() << why;
  const DeviceVector<uint64_t> data(100);
  const std::span<const std::byte> odd(reinterpret_cast<const std::byte*>(data.data()) + 2, 64);
  const auto digests = cuda::device_tensor_digests(std::span(&odd, 1));
  EXPECT_EQ(digests.status().code(), Code::invalid);
}

}  // namespace
}  // namespace exact
