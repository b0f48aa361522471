// Shapes that changed bits elsewhere, where a library or an engine chose a kernel by the number of
// rows. Each operation here is run at many numbers of rows, on each backend: a row has one result.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/reference/reference.h"
#include "tests/support/backends.h"
#include "tests/support/device_tensor.h"
#include "tests/support/expect_bits.h"
#include "tests/support/random_data.h"

namespace exact {
namespace {

class KernelTraps : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    BackendOptions options;
    options.kind = GetParam();
    auto backend = make_backend(options);
    if (!backend.is_ok()) GTEST_SKIP() << backend.status().message();
    backend_ = std::move(backend).value();
  }

  bool is_cuda() const { return std::string(GetParam()) == "cuda"; }

  std::vector<uint16_t> draw(DataKind kind, int64_t count) {
    return random_.bf16s(kind, static_cast<size_t>(count));
  }

  std::vector<uint16_t> first_rows(const std::vector<uint16_t>& values, int64_t rows,
                                   int64_t columns) {
    return {values.begin(), values.begin() + rows * columns};
  }

  std::vector<uint16_t> multiply(const std::vector<uint16_t>& x, int64_t rows,
                                 const LinearWeight& weight, const TensorView* bias) {
    const DeviceTensor in(*backend_, first_rows(x, rows, weight.in_features), rows,
                          weight.in_features);
    const DeviceTensor out(*backend_, rows, weight.out_features);
    backend_->linear(in.view(), weight, bias, out.view());
    return out.to_host();
  }

  LinearWeight pack(const std::vector<uint16_t>& w, int64_t n, int64_t k) {
    LinearWeight weight;
    const TensorView host(const_cast<uint16_t*>(w.data()), DType::bf16, n, k);
    EXPECT_TRUE(backend_->pack_whole(host, weight).is_ok());
    EXPECT_TRUE(backend_->finish().is_ok());
    return weight;
  }

  RandomData random_;
  std::unique_ptr<Backend> backend_;
};

// Swapped operands, tiles and split K are chosen by the number of rows elsewhere.
TEST_P(KernelTraps, ALinearLayersRowsIgnoreHowManyThereAre) {
  struct Shape {
    int64_t n, k;
    bool bias;
  };
  const int64_t most = is_cuda() ? 700 : 140;
  for (const Shape& shape : {Shape{256, 512, false}, Shape{1152, 896, true}, Shape{64, 2048, false},
                             Shape{2048, 128, false}}) {
    const auto x = draw(DataKind::normal, most * shape.k);
    const auto w = draw(DataKind::normal, shape.n * shape.k);
    const auto b = draw(DataKind::normal, shape.n);
    const LinearWeight weight = pack(w, shape.n, shape.k);
    const DeviceTensor bias(*backend_, b, 1, shape.n);
    const TensorView* bias_view = shape.bias ? &bias.view() : nullptr;
    const auto want = multiply(x, most, weight, bias_view);
    for (int64_t rows = 1; rows < most; rows += rows < 70 ? 1 : 37) {
      const auto got = multiply(x, rows, weight, bias_view);
      ASSERT_BITS_EQ(got, first_rows(want, rows, shape.n),
                     std::to_string(rows) + " rows of (" + std::to_string(shape.n) + ", " +
                         std::to_string(shape.k) + "), " + random_.describe());
    }
  }
}

// A GEMV path for one row, or for few columns, has other bits elsewhere; a dropped tail of K shows
// with ones.
TEST_P(KernelTraps, SmallDimensionsAndEveryTailOfKAreTheChain) {
  for (const DataKind kind : {DataKind::normal, DataKind::all_ones, DataKind::cancellation}) {
    for (const int64_t rows : {1, 2, 9, 65, 100}) {
      for (const int64_t n : {8, 16, 24, 40, 136}) {
        for (const int64_t k : {16, 32, 48, 64, 80, 112, 128, 176, 208}) {
          const auto x = draw(kind, rows * k), w = draw(kind, n * k);
          std::vector<uint16_t> want(static_cast<size_t>(rows * n));
          reference::linear({rows, n, k}, x, w, {}, want);
          ASSERT_BITS_EQ(multiply(x, rows, pack(w, n, k), nullptr), want,
                         std::string(data_kind_name(kind)) + ", " + std::to_string(rows) +
                             " rows of (" + std::to_string(n) + ", " + std::to_string(k) + "), " +
                             random_.describe());
        }
      }
    }
  }
}

// An RMSNorm that takes another block size from 256 rows on has other bits elsewhere.
TEST_P(KernelTraps, ANormsRowsIgnoreHowManyThereAre) {
  for (const int64_t width : {64, 128, 1024, 4096, 8192}) {
    const int64_t most = 600;
    const auto x = draw(DataKind::normal, most * width), w = draw(DataKind::normal, width);
    const DeviceTensor weight(*backend_, w, 1, width);
    for (const NormForm form : {NormForm::hf, NormForm::fused}) {
      std::vector<uint16_t> want(x.size());
      reference::rms_norm(x, w, 1e-6f, form, want);
      for (const int64_t rows : {1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513, 600}) {
        const DeviceTensor in(*backend_, first_rows(x, rows, width), rows, width);
        const DeviceTensor out(*backend_, rows, width);
        backend_->rms_norm(in.view(), weight.view(), 1e-6f, form, out.view());
        ASSERT_BITS_EQ(
            out.to_host(), first_rows(want, rows, width),
            std::to_string(rows) + " rows of " + std::to_string(width) + ", " + random_.describe());
      }
    }
  }
}

// A fused sampler that works on several rows at once gave other log-probabilities elsewhere.
TEST_P(KernelTraps, ADrawIgnoresTheRowsBesideIt) {
  const int64_t most = 70;
  for (const int64_t vocabulary : {64, 2056, 9224, 32000}) {
    const auto logits = draw(DataKind::normal, most * vocabulary);
    std::vector<SampleRow> rows(static_cast<size_t>(most));
    for (int64_t i = 0; i < most; i++) {
      SampleRow& row = rows[static_cast<size_t>(i)];
      row = {i, 7, static_cast<uint32_t>(i), static_cast<int32_t>(3 * i), 0.8f, 0, 1.0f, 0.0f};
      if (i % 3 == 1) row.top_k = 20, row.top_p = 0.9f;
      if (i % 5 == 2) row.min_p = 0.05f;
    }
    const DeviceTensor all(*backend_, logits, most, vocabulary);
    std::vector<SampleOutcome> want(rows.size());
    backend_->sample(all.view(), rows, want);
    ASSERT_TRUE(backend_->finish().is_ok());
    for (const int64_t count : {1, 2, 3, 8, 44, 45, 64, 69}) {
      const DeviceTensor some(*backend_, first_rows(logits, count, vocabulary), count, vocabulary);
      std::vector<SampleOutcome> got(static_cast<size_t>(count));
      backend_->sample(some.view(), std::span(rows).first(got.size()), got);
      ASSERT_TRUE(backend_->finish().is_ok());
      for (size_t i = 0; i < got.size(); i++) {
        const std::string what = "row " + std::to_string(i) + " of " + std::to_string(count) +
                                 ", V " + std::to_string(vocabulary);
        ASSERT_EQ(got[i].token, want[i].token) << what;
        ASSERT_EQ(float_bits(got[i].logprob), float_bits(want[i].logprob)) << what;
        ASSERT_EQ(float_bits(got[i].processed_logprob), float_bits(want[i].processed_logprob))
            << what;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backend, KernelTraps, testing::Values("cpu", "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace exact
