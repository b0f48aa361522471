// row_kernels_test.cu: norms, rotations, silu and copies have the bits of the reference, for every
// order of summation, strided rows and padding rows, and touch nothing else.
#include <algorithm>
#include <functional>

#include "kernels/contract/rope.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/reference/reference.h"
#include "tests/cuda/device.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"
#include "tests/support/golden_key.h"
#include "tests/support/random_data.h"

namespace exact::cuda_test {
namespace {

constexpr float kEpsilon = 1e-6f;

size_t count_of(int64_t a, int64_t b) {
  return static_cast<size_t>(a) * static_cast<size_t>(b);
}

// Rows of a wider matrix: `width` columns from `first` on.
class Slice {
 public:
  Slice(RandomData& data, DataKind kind, int64_t rows, int64_t width, int64_t first, int64_t after)
      : rows_(rows), width_(width), first_(first), stride_(first + width + after) {
    host_ = data.bf16s(kind, count_of(rows, stride_));
    device_ = std::make_unique<DeviceVector<uint16_t>>(host_);
  }
  cuda::Rows rows() const { return {device_->data() + first_, stride_}; }
  cuda::ConstRows const_rows() const { return {device_->data() + first_, stride_}; }
  std::vector<uint16_t> values() const {
    std::vector<uint16_t> out;
    for (int64_t r = 0; r < rows_; r++) {
      const auto* begin = host_.data() + r * stride_ + first_;
      out.insert(out.end(), begin, begin + width_);
    }
    return out;
  }
  // Fails where the slice on the device is not `want`, or anything beside it has changed.
  void expect(const std::vector<uint16_t>& want, const std::string& what) const {
    std::vector<uint16_t> whole = host_;
    for (int64_t r = 0; r < rows_; r++) {
      std::copy_n(want.begin() + r * width_, width_, whole.begin() + r * stride_ + first_);
    }
    ASSERT_BITS_EQ(device_->to_host(), whole, what);
  }

 private:
  int64_t rows_, width_, first_, stride_;
  std::vector<uint16_t> host_;
  std::unique_ptr<DeviceVector<uint16_t>> device_;
};

void expect_done(const Status& status) {
  ASSERT_TRUE(status.is_ok()) << status.to_string();
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
}

class RowKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
  }

  // x += y first where `add`.
  static void check_norm(RandomData& data, DataKind kind, int64_t rows, int64_t width,
                         NormForm form, bool add) {
    const std::string what = data.describe() + ", rows " + std::to_string(rows) + ", width " +
                             std::to_string(width) + ", form " +
                             std::to_string(static_cast<int>(form)) + ", add " +
                             std::to_string(add) + ", " + std::string(data_kind_name(kind));
    const Slice x(data, kind, rows, width, 8 * data.between(0, 2), 8 * data.between(0, 2));
    const Slice y(data, kind, rows, width, 8 * data.between(0, 2), 0);
    const Slice out(data, DataKind::any_bits, rows, width, 8, 8 * data.between(0, 2));
    const auto weight = data.bf16s(DataKind::normal, static_cast<size_t>(width));
    const DeviceVector<uint16_t> device_weight(weight);
    auto sum = x.values();
    std::vector<uint16_t> want(sum.size());
    if (add) {
      expect_done(cuda::launch_add_rms_norm(x.rows(), y.const_rows(), device_weight.data(),
                                            kEpsilon, form, out.rows(), rows, width, nullptr));
      reference::add(sum, y.values());
    } else {
      expect_done(cuda::launch_rms_norm(x.const_rows(), device_weight.data(), kEpsilon, form,
                                        out.rows(), rows, width, nullptr));
    }
    reference::rms_norm(sum, weight, kEpsilon, form, want);
    x.expect(sum, "x, " + what);
    out.expect(want, "out, " + what);
  }
};

TEST_F(RowKernels, EmbedAndGatherCopyRows) {
  RandomData data(1);
  for (const int64_t width : {8, 40, 256, 2048, 4096, 5128}) {
    const Slice table(data, DataKind::any_bits, 50, width, 0, 0);
    const Slice wide(data, DataKind::any_bits, 50, width, 16, 8);
    std::vector<int32_t> ids;
    for (int i = 0; i < 37; i++) ids.push_back(static_cast<int32_t>(data.between(0, 49)));
    const DeviceVector<int32_t> device_ids(ids);
    const Slice embedded(data, DataKind::any_bits, 37, width, 8, 8);
    const Slice gathered(data, DataKind::any_bits, 37, width, 0, 8);
    expect_done(cuda::launch_embed(device_ids.data(), table.const_rows().data, embedded.rows(), 37,
                                   width, nullptr));
    expect_done(cuda::launch_gather_rows(device_ids.data(), wide.const_rows(), gathered.rows(), 37,
                                         width, nullptr));
    std::vector<uint16_t> want(count_of(37, width));
    reference::embed(ids, table.values(), width, want);
    embedded.expect(want, "embed, width " + std::to_string(width));
    reference::embed(ids, wide.values(), width, want);
    gathered.expect(want, "gather_rows, width " + std::to_string(width));
  }
}

TEST_F(RowKernels, NormsOfEveryOrderHaveTheBitsOfTheReference) {
  RandomData data(2);
  for (const int64_t width : {32,   40,   64,   72,   96,   104,   120,   128,   136,   256,
                              1000, 1024, 1536, 2048, 2560, 4096,  4104,  5120,  6144,  8152,
                              8160, 8168, 8192, 8200, 9216, 12288, 16384, 16392, 28672, 32768}) {
    for (const NormForm form : {NormForm::hf, NormForm::fused}) {
      for (const bool add : {false, true}) {
        for (const int64_t rows : {1, 5}) {
          check_norm(data, data.pick(kFiniteDataKinds), rows, width, form, add);
        }
      }
    }
  }
}

TEST_F(RowKernels, NormsOfManyRowsHaveTheBitsOfTheReference) {
  RandomData data(3);
  for (const int64_t width : {64, 128, 1024, 2048, 4096, 8192}) {
    for (const NormForm form : {NormForm::hf, NormForm::fused}) {
      check_norm(data, DataKind::normal, 300, width, form, width % 128 == 0);
    }
  }
}

TEST_F(RowKernels, NormsHaveTheBitsOfPyTorch) {
  const GoldenFile golden("ops.safetensors");
  int checked = 0;
  for (const std::string& text : golden.keys()) {
    const GoldenKey key(text);
    if (key.operation != "rms_hf" && key.operation != "rms_fused") continue;
    const int64_t width = key.numbers[0];
    const auto size = static_cast<size_t>(width);
    const DeviceVector<uint16_t> x(hash_bf16(key.input("norm.x"), 1, 4 * size, -3, 3));
    const DeviceVector<uint16_t> w(hash_bf16(key.input("norm.w"), 1, size, 0.5, 1.5));
    const DeviceVector<uint16_t> out(4 * size);
    const NormForm form = key.operation == "rms_hf" ? NormForm::hf : NormForm::fused;
    expect_done(cuda::launch_rms_norm({x.data(), width}, w.data(), kEpsilon, form,
                                      {out.data(), width}, 4, width, nullptr));
    EXPECT_BITS_EQ(out.to_host(), golden.values<uint16_t>(text), text);
    checked++;
  }
  EXPECT_GT(checked, 4);
}

TEST_F(RowKernels, PointwiseOperationsHaveTheBitsOfTheReference) {
  RandomData data(4);
  for (const int64_t width : {8, 64, 264, 2048, 3080, 12288}) {
    for (const DataKind kind : kFiniteDataKinds) {
      const std::string what =
          data.describe() + ", width " + std::to_string(width) + std::string(data_kind_name(kind));
      const Slice gate(data, kind, 7, width, 0, width);
      const Slice up(data, kind, 7, width, width, 0);
      const Slice out(data, DataKind::any_bits, 7, width, 8, 16);
      expect_done(
          cuda::launch_silu_mul(gate.const_rows(), up.const_rows(), out.rows(), 7, width, nullptr));
      std::vector<uint16_t> want(count_of(7, width));
      reference::silu_mul(gate.values(), up.values(), want);
      out.expect(want, "silu_mul, " + what);
      expect_done(cuda::launch_add(gate.rows(), up.const_rows(), 7, width, nullptr));
      auto sum = gate.values();
      reference::add(sum, up.values());
      gate.expect(sum, "add, " + what);
    }
  }
}

TEST_F(RowKernels, SiluHasTheBitsOfTheReferenceForEveryFiniteGate) {
  std::vector<uint16_t> gate, up;
  for (uint32_t bits = 0; bits < 0x10000u; bits++) {
    gate.push_back((bits & 0x7f80u) == 0x7f80u ? uint16_t{0} : static_cast<uint16_t>(bits));
    up.push_back(0x3f80);
  }
  const DeviceVector<uint16_t> device_gate(gate), device_up(up), out(gate.size());
  expect_done(cuda::launch_silu_mul({device_gate.data(), 4096}, {device_up.data(), 4096},
                                    {out.data(), 4096}, 16, 4096, nullptr));
  std::vector<uint16_t> want(gate.size());
  reference::silu_mul(gate, up, want);
  EXPECT_BITS_EQ(out.to_host(), want, "silu");
}

TEST_F(RowKernels, SiluHasTheBitsOfPyTorch) {
  const GoldenFile golden("ops.safetensors");
  const DeviceVector<uint16_t> gate(hash_bf16("silu", 1, 16384, -20, 20));
  const DeviceVector<uint16_t> up(hash_bf16("silu.up", 1, 16384, -3, 3)), out(16384);
  expect_done(cuda::launch_silu_mul({gate.data(), 4096}, {up.data(), 4096}, {out.data(), 4096}, 4,
                                    4096, nullptr));
  EXPECT_BITS_EQ(out.to_host(), golden.values<uint16_t>("silu_mul"), "silu_mul");
}

// A step recorded once runs again, kernels overlapping as they may.
TEST_F(RowKernels, RunInAGraphOneAfterTheOther) {
  RandomData data(5);
  constexpr int64_t kRows = 16, kWidth = 4096;
  const Slice x(data, DataKind::normal, kRows, kWidth, 0, 0);
  const Slice y(data, DataKind::normal, kRows, kWidth, 0, 0);
  const Slice out(data, DataKind::normal, kRows, kWidth, 0, 0);
  const auto weight = data.bf16s(DataKind::normal, kWidth);
  const DeviceVector<uint16_t> device_weight(weight);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t runnable;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  constexpr int kTurns = 20;
  for (int turn = 0; turn < kTurns; turn++) {
    const Status normed =
        cuda::launch_add_rms_norm(x.rows(), y.const_rows(), device_weight.data(), kEpsilon,
                                  NormForm::hf, out.rows(), kRows, kWidth, stream);
    ASSERT_TRUE(normed.is_ok()) << normed.to_string();
    const Status multiplied =
        cuda::launch_silu_mul(out.const_rows(), x.const_rows(), y.rows(), kRows, kWidth, stream);
    ASSERT_TRUE(multiplied.is_ok()) << multiplied.to_string();
  }
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&runnable, graph, 0), cudaSuccess);
  auto want_x = x.values(), want_y = y.values();
  std::vector<uint16_t> want_out(want_x.size());
  for (int replay = 0; replay < 3; replay++) {
    ASSERT_EQ(cudaGraphLaunch(runnable, stream), cudaSuccess);
    for (int turn = 0; turn < kTurns; turn++) {
      reference::add(want_x, want_y);
      reference::rms_norm(want_x, weight, kEpsilon, NormForm::hf, want_out);
      reference::silu_mul(want_out, want_x, want_y);
    }
  }
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  x.expect(want_x, "x");
  y.expect(want_y, "y");
  out.expect(want_out, "out");
  cudaGraphExecDestroy(runnable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST(RowKernelShapes, AreRefusedByName) {
  const auto norm_refusal = [](int64_t width) {
    return cuda::launch_rms_norm({nullptr, width}, nullptr, kEpsilon, NormForm::hf,
                                 {nullptr, width}, 0, width, nullptr)
        .message();
  };
  EXPECT_NE(norm_refusal(24).find("norm width is 24"), std::string::npos);
  EXPECT_NE(norm_refusal(100).find("norm width is 100"), std::string::npos);
  EXPECT_NE(norm_refusal(32776).find("norm width is 32776"), std::string::npos);
  EXPECT_EQ(norm_refusal(4096), "");
  const Status add = cuda::launch_add({nullptr, 8}, {nullptr, 8}, 0, 12, nullptr);
  EXPECT_NE(add.message().find("width is 12"), std::string::npos);
  const Status rope =
      cuda::launch_store_kv({nullptr, 8}, {nullptr, 8}, {nullptr, 24, 1, 64, 1}, {}, nullptr);
  EXPECT_NE(rope.message().find("page size is 24"), std::string::npos);
  const Status head =
      cuda::launch_store_kv({nullptr, 8}, {nullptr, 8}, {nullptr, 16, 1, 48, 1}, {}, nullptr);
  EXPECT_NE(head.message().find("head width is 48"), std::string::npos);
}

}  // namespace
}  // namespace exact::cuda_test
