// The CPU backend against stock PyTorch's bits on an H200, on every instruction set: linear layers
// and attention, the operations that it does not share with the reference.
#include <algorithm>
#include <numeric>

#include "tests/kernels/cpu_test_support.h"
#include "tests/support/golden.h"
#include "tests/support/golden_key.h"

namespace exact {
namespace {

struct AttentionGoldenCase {
  const char* file;
  const char* key;
  const char* inputs;  // "<inputs>.q.<width>", ...
  uint64_t seed;
  int32_t query_heads, kv_heads;
  int64_t length;
  double range;
};

constexpr AttentionGoldenCase kAttentionCases[] = {
    {"ops.safetensors", "attention.64", "att", 1, 8, 2, 333, 3.0},
    {"ops.safetensors", "attention.128", "att", 1, 8, 4, 517, 3.0},
    {"ops2.safetensors", "attention_long.64", "attl", 2, 8, 2, 1500, 1.0},
    {"ops2.safetensors", "attention_long.128", "attl", 2, 8, 4, 1500, 1.0},
};

// (heads, length, width) -> (length, heads * width), of the first heads
std::vector<uint16_t> by_position(const std::vector<uint16_t>& x, int64_t heads, int64_t length,
                                  int64_t width) {
  std::vector<uint16_t> out(x.size());
  for (int64_t h = 0; h < heads; h++) {
    for (int64_t t = 0; t < length; t++) {
      std::copy_n(x.begin() + (h * length + t) * width, width,
                  out.begin() + (t * heads + h) * width);
    }
  }
  return out;
}

class CpuGolden : public CpuIsaTest {
 protected:
  void check_linear(const GoldenFile& golden, const std::string& text) {
    const GoldenKey key(text);
    const int64_t n = key.numbers[0], k = key.numbers[1];
    const auto x = hash_bf16(key.input("lin.x"), 1, static_cast<size_t>(8 * k), -2, 2);
    const auto w = hash_bf16(key.input("lin.w"), 1, static_cast<size_t>(n * k), -1, 1);
    const auto b = hash_bf16(key.input("lin.b"), 1, static_cast<size_t>(n), -1, 1);
    const TensorView bias = host_view(b, 1, n);
    LinearWeight packed;
    ASSERT_TRUE(backend_->pack_whole(host_view(w, n, k), packed).is_ok());
    std::vector<uint16_t> out(static_cast<size_t>(8 * n));
    backend_->linear(host_view(x, 8, k), packed, key.operation == "linear_bias" ? &bias : nullptr,
                     host_view(out, 8, n));
    EXPECT_BITS_EQ(out, golden.values<uint16_t>(text), text);
  }

  // Chunks of random lengths over scattered pages; only the heads that the golden stores. Of a long
  // sequence the scalar chain, which is slow, computes every sixth chunk.
  void check_attention(const AttentionGoldenCase& c) {
    const GoldenFile golden(c.file);
    const GoldenKey key(c.key);
    const auto want = golden.values<uint16_t>(c.key);
    const int64_t width = key.numbers[0];
    const int64_t group = c.query_heads / c.kv_heads;
    const int64_t heads = static_cast<int64_t>(want.size()) / c.length / width;
    const int64_t kv_heads = (heads + group - 1) / group;
    const int64_t query_heads = kv_heads * group;
    const auto input = [&](const char* name, int64_t head_count, double range) {
      return by_position(
          hash_bf16(key.input(std::string(c.inputs) + name), c.seed,
                    static_cast<size_t>(head_count * c.length * width), -range, range),
          head_count, c.length, width);
    };
    const auto q = input(".q", query_heads, c.range);
    const auto k = input(".k", kv_heads, c.range);
    const auto v = input(".v", kv_heads, 1.0);
    std::vector<int32_t> pages(static_cast<size_t>((c.length + 31) / 32));
    std::iota(pages.rbegin(), pages.rend(), 0);
    auto cache =
        backend_->allocate_kv({1, static_cast<int32_t>(pages.size()), 32,
                               static_cast<int32_t>(kv_heads), static_cast<int32_t>(width)});
    ASSERT_TRUE(cache.is_ok());
    std::vector<uint16_t> out(q.size());
    const TensorView query_view = host_view(q, c.length, query_heads * width);
    const TensorView key_view = host_view(k, c.length, kv_heads * width);
    const TensorView value_view = host_view(v, c.length, kv_heads * width);
    const TensorView out_view = host_view(out, c.length, query_heads * width);
    const int64_t turn = GetParam() == CpuIsa::scalar && c.length > 1000 ? 6 : 1;
    std::vector<bool> computed(static_cast<size_t>(c.length), false);
    RandomData data(3);
    int64_t chunk_index = 0;
    for (int64_t t = 0; t < c.length;) {
      const int64_t count = std::min(c.length - t, data.between(1, 200));
      const SequenceChunk chunk{0, static_cast<int32_t>(count), static_cast<int32_t>(t), pages};
      backend_->begin_step({{}, {}, std::span(&chunk, 1)});
      backend_->store_kv(key_view.slice_rows(t, count), value_view.slice_rows(t, count), 0, *cache);
      if (chunk_index++ % turn == 0) {
        backend_->attention(query_view.slice_rows(t, count), *cache, 0,
                            out_view.slice_rows(t, count));
        std::fill_n(computed.begin() + t, count, true);
      }
      t += count;
    }
    std::vector<uint16_t> got = want;
    for (int64_t h = 0; h < heads; h++) {
      for (int64_t t = 0; t < c.length; t++) {
        if (!computed[static_cast<size_t>(t)]) continue;
        std::copy_n(out.begin() + (t * query_heads + h) * width, width,
                    got.begin() + (h * c.length + t) * width);
      }
    }
    EXPECT_BITS_EQ(got, want, c.key);
  }
};

TEST_P(CpuGolden, LinearLayers) {
  const GoldenFile golden("ops.safetensors");
  int checked = 0;
  for (const std::string& key : golden.keys()) {
    if (!key.starts_with("linear.") && !key.starts_with("linear_bias.")) continue;
    check_linear(golden, key);
    checked++;
  }
  EXPECT_EQ(checked, 8);
}

TEST_P(CpuGolden, Attention) {
  for (const AttentionGoldenCase& c : kAttentionCases) check_attention(c);
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuGolden, testing::ValuesIn(kAllIsas), isa_test_name);

}  // namespace
}  // namespace exact
