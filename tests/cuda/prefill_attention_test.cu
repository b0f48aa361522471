// prefill_attention_test.cu: the plain kernel gives the reference's bits and the goldens', the
// prefill kernel gives both's, whatever the lengths, positions, pages, heads and blocks.
#include "kernels/cuda/attention.h"
#include "tests/cuda/attention_support.h"
#include "tests/support/golden.h"
#include "tests/support/golden_key.h"

namespace exact::cuda_test {
namespace {

class Attention : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
  }

  static std::vector<uint16_t> plain_rows(DeviceAttention& device) {
    device.reset();
    const Status status = cuda::launch_plain_attention(device.inputs(), nullptr);
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return device.rows();
  }

  static std::vector<uint16_t> prefill_rows(DeviceAttention& device, int multiprocessors = 132) {
    device.reset();
    const Status status = cuda::launch_prefill_attention(device.inputs(), multiprocessors, nullptr);
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return device.rows();
  }

  // The rows of decode sequences must stay as they were; all others equal `want`.
  static void expect_prefill(const HostAttention& host, DeviceAttention& device,
                             const std::vector<uint16_t>& want, int multiprocessors = 132) {
    const std::vector<uint16_t> got = prefill_rows(device, multiprocessors);
    EXPECT_EQ(difference(host, want, got, device.first_prefill_row()), "")
        << multiprocessors << " multiprocessors";
    for (size_t i = 0; i < device.first_prefill_row() * host.query_width(); i++)
      ASSERT_EQ(got[i], kUntouched) << "a decode row was written; " << host.about;
  }
};

// Lengths from 2 to 300, chunks that begin anywhere, a decode row among them.
SequenceShapes random_shapes(uint64_t seed) {
  const contract::HashStream stream("shapes", seed);
  SequenceShapes shapes{{1, static_cast<int32_t>(stream.bits24(0) % 200)}};
  for (uint64_t i = 1; i <= 4; i++) {
    const auto rows = static_cast<int32_t>(2 + stream.bits24(2 * i) % 299);
    const auto position = static_cast<int32_t>(stream.bits24(2 * i + 1) % 300);
    shapes.push_back({rows, i % 2 == 0 ? position : 0});
  }
  return shapes;
}

TEST_F(Attention, PlainEqualsTheReferenceAtEveryHeadWidth) {
  for (const int32_t width : {32, 64, 80, 96, 128, 256}) {
    const SequenceShapes shapes{{1, 0}, {1, 130}, {70, 0}, {9, 61}};
    const HostAttention host = draw_attention({4, 2, width}, 16, shapes);
    DeviceAttention device(host);
    EXPECT_EQ(difference(host, reference_rows(host), plain_rows(device)), "");
  }
}

TEST_F(Attention, PrefillEqualsTheReferenceAtRandomShapes) {
  const std::pair<int32_t, int32_t> heads[] = {{2, 2}, {4, 2}, {4, 1}, {7, 1}, {8, 1}};
  uint64_t seed = 0;
  for (const int32_t width : {64, 128}) {
    for (const auto& [query_heads, kv_heads] : heads) {
      for (const int32_t page_size : {16, 32, 64, 128}) {
        seed++;
        const HostAttention host = draw_attention({query_heads, kv_heads, width}, page_size,
                                                  random_shapes(seed), 3.0, seed);
        DeviceAttention device(host);
        const std::vector<uint16_t> want = reference_rows(host);
        EXPECT_EQ(difference(host, want, plain_rows(device)), "") << "plain";
        expect_prefill(host, device, want);
      }
    }
  }
}

// Every end of a tile, a warpgroup and a key block, and every place of a chunk's start in them.
TEST_F(Attention, PrefillEqualsPlainAtEveryEdge) {
  for (const int32_t width : {64, 128}) {
    SequenceShapes lengths, starts;
    for (const int32_t rows :
         {2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257})
      lengths.push_back({rows, 0});
    for (int32_t start = 0; start <= 130; start += start % 8 == 1 ? 6 : 1)
      starts.push_back({start % 3 == 0 ? 130 : 66, start});
    for (const SequenceShapes& shapes : {lengths, starts}) {
      const HostAttention host = draw_attention({2, 1, width}, 16, shapes);
      DeviceAttention device(host);
      expect_prefill(host, device, plain_rows(device));
    }
  }
}

// Probabilities that underflow, that are all alike, and scores that are all zero.
TEST_F(Attention, PrefillEqualsTheReferenceAtAnyRange) {
  for (const int32_t width : {64, 128}) {
    for (const double range : {0.0, 0.05, 12.0, 100.0}) {
      const HostAttention host = draw_attention({2, 1, width}, 32, {{200, 0}, {90, 75}}, range);
      DeviceAttention device(host);
      expect_prefill(host, device, reference_rows(host));
    }
  }
}

TEST_F(Attention, PrefillEqualsPlainAtLength2048AndInChunksOfALongContext) {
  for (const int32_t width : {64, 128}) {
    for (const int32_t page_size : {16, 64}) {
      const HostAttention host =
          draw_attention({8, 2, width}, page_size, {{2048, 0}, {256, 3900}, {512, 1024}});
      DeviceAttention device(host);
      expect_prefill(host, device, plain_rows(device));
    }
  }
}

TEST_F(Attention, BlocksOfTheGridCantBeSeenInPrefill) {
  const HostAttention host =
      draw_attention({4, 1, 128}, 16, {{600, 0}, {300, 17}, {2, 500}, {130, 64}});
  DeviceAttention device(host);
  const std::vector<uint16_t> want = plain_rows(device);
  for (const int multiprocessors : {1, 2, 3, 7, 40, 1000})
    expect_prefill(host, device, want, multiprocessors);
}

// PyTorch's tensors are (heads, length, width), the step's rows (length, heads * width).
std::vector<uint16_t> by_position(const std::vector<uint16_t>& x, size_t heads, size_t length,
                                  size_t width) {
  std::vector<uint16_t> out(x.size());
  for (size_t h = 0; h < heads; h++) {
    for (size_t t = 0; t < length; t++) {
      std::copy_n(x.begin() + static_cast<std::ptrdiff_t>((h * length + t) * width), width,
                  out.begin() + static_cast<std::ptrdiff_t>((t * heads + h) * width));
    }
  }
  return out;
}

struct GoldenCase {
  const char* file;
  const char* key;
  uint64_t seed;
  const char* prefix;
  size_t query_heads, kv_heads, length, width;
  double range;
};

TEST_F(Attention, EqualsWhatPyTorchGave) {
  const GoldenCase cases[] = {
      {"ops.safetensors", "attention.64", 1, "att", 8, 2, 333, 64, 3},
      {"ops.safetensors", "attention.128", 1, "att", 8, 4, 517, 128, 3},
      {"ops2.safetensors", "attention_long.64", 2, "attl", 8, 2, 1500, 64, 1},
      {"ops2.safetensors", "attention_long.128", 2, "attl", 8, 4, 1500, 128, 1},
      {"ops2.safetensors", "attention.32", 2, "att", 8, 4, 300, 32, 3},
      {"ops2.safetensors", "attention.80", 2, "att", 8, 8, 300, 80, 3},
      {"ops2.safetensors", "attention.96", 2, "att", 8, 2, 300, 96, 3},
      {"ops2.safetensors", "attention.256", 2, "att", 8, 2, 300, 256, 3},
  };
  for (const GoldenCase& about : cases) {
    const auto input = [&](const char* name, size_t heads, double range) {
      const std::string key = std::string(about.prefix) + name + "." + std::to_string(about.width);
      return by_position(
          hash_bf16(key, about.seed, heads * about.length * about.width, -range, range), heads,
          about.length, about.width);
    };
    HostSequence sequence{static_cast<int32_t>(about.length), 0,
                          input(".q", about.query_heads, about.range),
                          input(".k", about.kv_heads, about.range), input(".v", about.kv_heads, 1)};
    HostAttention host{{static_cast<int32_t>(about.query_heads),
                        static_cast<int32_t>(about.kv_heads), static_cast<int32_t>(about.width)},
                       16,
                       0,
                       {std::move(sequence)},
                       about.key};
    DeviceAttention device(host);
    // Stored: (heads, length, width) of the first heads.
    const std::vector<uint16_t> stored = GoldenFile(about.file).values<uint16_t>(about.key);
    const size_t heads = stored.size() / (about.length * about.width);
    const auto equals_golden = [&](const std::vector<uint16_t>& rows) {
      size_t differing = 0;
      for (size_t i = 0; i < stored.size(); i++) {
        const size_t h = i / (about.length * about.width), t = i / about.width % about.length;
        differing += stored[i] != rows[(t * about.query_heads + h) * about.width + i % about.width];
      }
      EXPECT_EQ(differing, 0u) << "of " << stored.size() << ", " << heads << " heads; "
                               << about.key;
    };
    equals_golden(plain_rows(device));
    if (cuda::prefill_attention_covers(host.shape.head_width)) equals_golden(prefill_rows(device));
  }
}

TEST(AttentionLaunch, RefusesHeadWidthsByName) {
  cuda::AttentionInputs inputs;
  inputs.pages.head_width = 72;
  EXPECT_NE(cuda::launch_plain_attention(inputs, nullptr).message().find("72"), std::string::npos);
  inputs.pages.head_width = 96;
  EXPECT_NE(cuda::launch_prefill_attention(inputs, 132, nullptr).message().find("96"),
            std::string::npos);
}

}  // namespace
}  // namespace exact::cuda_test
