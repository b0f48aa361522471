// rope_kernels_test.cu: heads are normalised, rotated and stored in their pages with the bits of
// the reference; padding rows and foreign slots stay as they are.
#include <algorithm>
#include <numeric>

#include "kernels/contract/rope.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/reference/reference.h"
#include "tests/cuda/device.h"
#include "tests/support/expect_bits.h"
#include "tests/support/random_data.h"

namespace exact::cuda_test {
namespace {

constexpr float kEpsilon = 1e-5f;
constexpr int32_t kPositions = 300;

std::vector<uint16_t> rope_table(int32_t head_width) {
  RopeConfig config;
  config.head_width = head_width;
  const auto frequencies = inverse_frequencies(config);
  const auto row = static_cast<size_t>(2 * head_width);
  std::vector<uint16_t> table(kPositions * row);
  for (int32_t p = 0; p < kPositions; p++) {
    rope_row(frequencies, p, std::span(table).subspan(static_cast<size_t>(p) * row, row));
  }
  return table;
}

// Sequences at random places of a cache with random pages; padding rows at the end.
struct RandomStep {
  std::vector<int32_t> positions, row_sequence, pages;
  std::vector<cuda::DeviceSequence> sequences;
  int32_t page_count = 0;

  RandomStep(RandomData& data, int sequence_count, int padding, int32_t page_size) {
    std::vector<int32_t> free_pages(
        static_cast<size_t>(sequence_count * (kPositions / page_size + 1)));
    page_count = static_cast<int32_t>(free_pages.size());
    std::iota(free_pages.begin(), free_pages.end(), 0);
    for (size_t i = free_pages.size() - 1; i > 0; i--) {
      std::swap(free_pages[i],
                free_pages[static_cast<size_t>(data.between(0, static_cast<int64_t>(i)))]);
    }
    for (int32_t s = 0; s < sequence_count; s++) {
      const auto rows = static_cast<int32_t>(s % 2 == 0 ? 1 : data.between(2, 40));
      const auto first = static_cast<int32_t>(data.between(0, kPositions - rows));
      sequences.push_back({static_cast<int32_t>(positions.size()), rows, first,
                           static_cast<int32_t>(pages.size())});
      for (int32_t i = 0; i < rows; i++) {
        positions.push_back(first + i);
        row_sequence.push_back(s);
      }
      for (int32_t p = 0; p <= (first + rows - 1) / page_size; p++) {
        pages.push_back(free_pages.back());
        free_pages.pop_back();
      }
    }
    for (int i = 0; i < padding; i++) {
      positions.push_back(0);
      row_sequence.push_back(-1);
    }
  }
  int64_t rows() const { return static_cast<int64_t>(positions.size()); }
};

// The step on the device, and a cache of any bits that both sides start with.
struct Device {
  DeviceVector<int32_t> positions, row_sequence, pages;
  DeviceVector<cuda::DeviceSequence> sequences;
  cuda::DeviceStep step;

  explicit Device(const RandomStep& host)
      : positions(host.positions),
        row_sequence(host.row_sequence),
        pages(host.pages),
        sequences(host.sequences) {
    step.rows = static_cast<int32_t>(host.rows());
    step.positions = positions.data();
    step.row_sequence = row_sequence.data();
    step.pages = pages.data();
    step.sequences = sequences.data();
  }
};

class RopeKernels : public testing::TestWithParam<int32_t> {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
  }

  // Writes rows of (kv_heads * E) into the pages as kv_layout.h says.
  static void store(const RandomStep& step, const std::vector<uint16_t>& rows, bool values,
                    cuda::LayerPages pages, std::vector<uint16_t>& cache) {
    pages.layer = cache.data();
    for (int64_t t = 0; t < step.rows(); t++) {
      const int32_t s = step.row_sequence[static_cast<size_t>(t)];
      if (s < 0) continue;
      const int32_t position = step.positions[static_cast<size_t>(t)];
      const auto& sequence = step.sequences[static_cast<size_t>(s)];
      const int32_t page =
          step.pages[static_cast<size_t>(sequence.first_page + position / pages.page_size)];
      for (int32_t h = 0; h < pages.kv_heads; h++) {
        for (int32_t d = 0; d < pages.head_width; d++) {
          uint16_t* const block = values ? pages.values(page, h, d / cuda::kColumnBlock)
                                         : pages.keys(page, h, d / cuda::kColumnBlock);
          block[cuda::swizzled(position % pages.page_size, d % cuda::kColumnBlock)] =
              rows[static_cast<size_t>((t * pages.kv_heads + h) * pages.head_width + d)];
        }
      }
    }
  }

  struct Case {
    int32_t query_heads, kv_heads, page_size;
    int norms;  // 0: none, 1: of query and key, 2: of the key alone
    NormForm form;
    DataKind kind;
  };

  static void check(RandomData& data, const Case& c) {
    const int32_t width = GetParam();
    const std::string what =
        data.describe() + ", E " + std::to_string(width) + ", norms " + std::to_string(c.norms) +
        ", form " + std::to_string(static_cast<int>(c.form)) + ", page size " +
        std::to_string(c.page_size) + ", " + std::string(data_kind_name(c.kind));
    const RandomStep host(data, 7, static_cast<int>(data.between(0, 3)), c.page_size);
    const Device device(host);
    const int64_t rows = host.rows(), q_width = c.query_heads * width,
                  kv_width = c.kv_heads * width, stride = q_width + 2 * kv_width + 8;
    const auto mixed = data.bf16s(c.kind, static_cast<size_t>(rows * stride));
    const auto slice = [&](int64_t first, int64_t columns) {
      std::vector<uint16_t> out;
      for (int64_t r = 0; r < rows; r++) {
        const auto begin = mixed.begin() + r * stride + first;
        out.insert(out.end(), begin, begin + columns);
      }
      return out;
    };
    const auto table = rope_table(width);
    const auto q_norm = c.norms == 1 ? data.bf16s(DataKind::normal, static_cast<size_t>(width))
                                     : std::vector<uint16_t>();
    const auto k_norm = c.norms >= 1 ? data.bf16s(DataKind::normal, static_cast<size_t>(width))
                                     : std::vector<uint16_t>();
    cuda::LayerPages pages{nullptr, c.page_size, c.kv_heads, width, cuda::column_blocks(width)};
    const auto cache = data.bf16s(DataKind::any_bits,
                                  static_cast<size_t>(host.page_count * pages.page_elements()));

    auto query = slice(0, q_width), keys = slice(q_width, kv_width);
    const auto raw_keys = keys, values = slice(q_width + kv_width, kv_width);
    reference::rope(query, host.positions, table, width, q_norm, kEpsilon, c.form);
    reference::rope(keys, host.positions, table, width, k_norm, kEpsilon, c.form);
    auto want_cache = cache;
    store(host, keys, false, pages, want_cache);
    store(host, values, true, pages, want_cache);
    auto want_mixed = mixed;
    for (int64_t r = 0; r < rows; r++) {
      std::copy_n(query.begin() + r * q_width, q_width, want_mixed.begin() + r * stride);
    }

    const DeviceVector<uint16_t> device_mixed(mixed), device_cache(cache), device_table(table),
        device_q_norm(q_norm.empty() ? table : q_norm),
        device_k_norm(k_norm.empty() ? table : k_norm);
    pages.layer = device_cache.data();
    const cuda::RopeInputs rope{device_table.data(),
                                q_norm.empty() ? nullptr : device_q_norm.data(),
                                k_norm.empty() ? nullptr : device_k_norm.data(), kEpsilon, c.form};
    uint16_t* const q = device_mixed.data();
    const Status all = cuda::launch_rope_store_kv({q, stride}, c.query_heads, {q + q_width, stride},
                                                  {q + q_width + kv_width, stride}, rope, pages,
                                                  device.step, nullptr);
    ASSERT_TRUE(all.is_ok()) << all.to_string();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << what;
    auto got_mixed = device_mixed.to_host();
    for (int64_t r = 0; r < rows; r++) {  // keys may keep their old values, or not
      std::copy_n(mixed.begin() + r * stride + q_width, kv_width,
                  got_mixed.begin() + r * stride + q_width);
    }
    ASSERT_BITS_EQ(got_mixed, want_mixed, "rope_store_kv, rows, " + what);
    ASSERT_BITS_EQ(device_cache.to_host(), want_cache, "rope_store_kv, pages, " + what);

    // The same in three launches.
    const DeviceVector<uint16_t> again(mixed), cache_again(cache);
    pages.layer = cache_again.data();
    uint16_t* const p = again.data();
    ASSERT_TRUE(cuda::launch_rope({p, stride}, c.query_heads, width, rope, rope.query_norm,
                                  device.step, nullptr)
                    .is_ok());
    ASSERT_TRUE(cuda::launch_rope({p + q_width, stride}, c.kv_heads, width, rope, rope.key_norm,
                                  device.step, nullptr)
                    .is_ok());
    ASSERT_TRUE(cuda::launch_store_kv({p + q_width, stride}, {p + q_width + kv_width, stride},
                                      pages, device.step, nullptr)
                    .is_ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << what;
    for (int64_t r = 0; r < rows; r++) {
      std::copy_n(keys.begin() + r * kv_width, kv_width, want_mixed.begin() + r * stride + q_width);
    }
    ASSERT_BITS_EQ(again.to_host(), want_mixed, "rope, rows, " + what);
    ASSERT_BITS_EQ(cache_again.to_host(), want_cache, "store_kv, pages, " + what);
  }
};

TEST_P(RopeKernels, HaveTheBitsOfTheReference) {
  RandomData data(10 + static_cast<uint64_t>(GetParam()));
  for (const int norms : {0, 1, 2}) {
    for (const NormForm form : {NormForm::hf, NormForm::fused}) {
      for (const int32_t page_size : {16, 64, 128}) {
        check(data,
              {static_cast<int32_t>(data.between(1, 9)), static_cast<int32_t>(data.between(1, 5)),
               page_size, norms, form, DataKind::normal});
      }
      for (const DataKind kind : kFiniteDataKinds) check(data, {4, 2, 32, norms, form, kind});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Width, RopeKernels, testing::Values(32, 64, 80, 96, 128, 256));

}  // namespace
}  // namespace exact::cuda_test
