// decode_attention_test.cu: both forms of decode attention have the reference's bits (rule N5), for
// every shape that they take, whatever else is in the step.
#include <cmath>

#include "tests/cuda/attention_support.h"

namespace exact::cuda_test {
namespace {

using cuda::DecodeAttentionForm;

constexpr DecodeAttentionForm kForms[] = {
    DecodeAttentionForm::automatic, DecodeAttentionForm::streamed, DecodeAttentionForm::spread};

std::string form_name(DecodeAttentionForm form) {
  return form == DecodeAttentionForm::automatic  ? "automatic form, "
         : form == DecodeAttentionForm::streamed ? "streamed form, "
                                                 : "spread form, ";
}

// One row each, of these contexts.
SequenceShapes contexts(const std::vector<int32_t>& lengths) {
  SequenceShapes shapes;
  for (const int32_t length : lengths) shapes.emplace_back(1, length - 1);
  return shapes;
}

class DecodeAttention : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_device(); !reason.empty()) GTEST_SKIP() << reason;
  }

  // The rows that a form gives; scratch is NaN before.
  static std::vector<uint16_t> launch(DeviceAttention& device, cuda::AttentionInputs inputs,
                                      DecodeAttentionForm form, int multiprocessors = 132) {
    const size_t bytes = cuda::decode_attention_scratch(
        inputs.step.decode_sequences, inputs.query_heads, inputs.step.max_decode_context);
    const DeviceVector<uint16_t> scratch(std::vector<uint16_t>(bytes / 2 + 1, kNan));
    device.reset();
    inputs.out = device.inputs().out;
    const Status status = cuda::launch_decode_attention(inputs, form, multiprocessors,
                                                        scratch.data(), bytes, nullptr);
    EXPECT_TRUE(status.is_ok()) << status.to_string();
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return device.rows();
  }

  // Every form beside the reference.
  static void expect_equal(const HostAttention& host) {
    const std::vector<uint16_t> want = reference_rows(host);
    DeviceAttention device(host);
    for (const DecodeAttentionForm form : kForms) {
      const std::string differs = difference(host, want, launch(device, device.inputs(), form));
      ASSERT_EQ(differs, "") << form_name(form);
    }
  }
};

TEST_F(DecodeAttention, EqualsTheReferenceForEveryWidthAndPageSize) {
  for (const int32_t width : {32, 64, 80, 96, 128}) {
    for (const int32_t page_size : {16, 32, 64, 128}) {
      expect_equal(draw_attention({4, 2, width}, page_size,
                                  contexts({1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 257,
                                            300, 511, 512, 513, 700})));
    }
  }
}

TEST_F(DecodeAttention, EqualsTheReferenceForEveryGroupOfHeads) {
  for (const int32_t width : {64, 80, 128}) {
    for (const int32_t group : {1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 32, 40}) {
      expect_equal(draw_attention({group * 2, 2, width}, 16, contexts({1, 40, 64, 130, 300}), 3.0,
                                  static_cast<uint64_t>(group)));
    }
  }
}

TEST_F(DecodeAttention, EqualsTheReferenceForBatchesOfMixedLengths) {
  const contract::HashStream stream("decode.lengths", kSeed);
  uint64_t next = 0;
  for (const size_t batch : {1, 2, 5, 16, 33, 70}) {
    std::vector<int32_t> lengths(batch);
    for (int32_t& length : lengths) length = static_cast<int32_t>(stream.bits24(next++) % 700) + 1;
    expect_equal(draw_attention({8, 2, 128}, 32, contexts(lengths), 3.0, batch));
    expect_equal(draw_attention({4, 4, 64}, 16, contexts(lengths), 3.0, batch));
  }
}

// The fewer multiprocessors there seem to be, the more blocks share one, with shallower rings.
TEST_F(DecodeAttention, NoDepthOfTheRingsChangesABit) {
  for (const int32_t width : {64, 80, 128}) {
    for (const int32_t group : {1, 4, 8, 16}) {
      const HostAttention host =
          draw_attention({group * 2, 2, width}, 32, contexts({1, 700, 65, 400, 128, 999}));
      const std::vector<uint16_t> want = reference_rows(host);
      DeviceAttention device(host);
      for (const int multiprocessors : {1, 4, 6, 12, 132}) {
        const std::vector<uint16_t> got =
            launch(device, device.inputs(), DecodeAttentionForm::streamed, multiprocessors);
        ASSERT_EQ(difference(host, want, got), "") << multiprocessors << " multiprocessors";
      }
    }
  }
}

TEST_F(DecodeAttention, EqualsTheReferenceForLongContexts) {
  expect_equal(draw_attention({4, 1, 128}, 16, contexts({5000, 1, 4097, 3000})));
  expect_equal(draw_attention({2, 1, 64}, 64, contexts({5000, 2500})));
  expect_equal(draw_attention({2, 1, 96}, 128, contexts({3333})));
}

// Scores far apart: most probabilities underflow, and the maximum changes often.
TEST_F(DecodeAttention, EqualsTheReferenceWhereProbabilitiesVanish) {
  for (const int32_t width : {32, 64, 128})
    for (const double range : {0.01, 30.0, 3000.0})
      expect_equal(draw_attention({4, 2, width}, 32, contexts({1, 90, 333, 600}), range));
}

TEST_F(DecodeAttention, SkipsSequencesOfNobodyAndRowsOfPrefill) {
  SequenceShapes shapes = contexts({70, 300, 5});
  shapes.emplace_back(9, 20);
  const HostAttention host = draw_attention({8, 2, 128}, 16, shapes);
  const std::vector<uint16_t> want = reference_rows(host);
  DeviceAttention device(host);
  cuda::AttentionInputs inputs = device.inputs();
  std::vector<cuda::DeviceSequence> sequences(3);
  ASSERT_EQ(cudaMemcpy(sequences.data(), inputs.step.sequences,
                       sequences.size() * sizeof(cuda::DeviceSequence), cudaMemcpyDeviceToHost),
            cudaSuccess);
  const cuda::DeviceSequence nobody{0, 0, 0, 0};
  sequences.insert(sequences.begin() + 1, nobody);
  sequences.push_back(nobody);
  const DeviceVector<cuda::DeviceSequence> padded(sequences);
  inputs.step.sequences = padded.data();
  inputs.step.decode_sequences = static_cast<int32_t>(sequences.size());
  inputs.step.max_decode_context = 4096;  // as a recorded step has it: more than there is
  for (const DecodeAttentionForm form : kForms) {
    std::vector<uint16_t> got = launch(device, inputs, form);
    // Rows of prefill are another kernel's.
    for (size_t i = 3 * host.query_width(); i < got.size(); i++) {
      ASSERT_EQ(got[i], kUntouched) << form_name(form) << "element " << i;
      got[i] = want[i];
    }
    ASSERT_EQ(difference(host, want, got), "") << form_name(form);
  }
}

// The same sequence alone and among others, in steps of any longest context.
TEST_F(DecodeAttention, OtherSequencesChangeNothing) {
  const HostAttention alone = draw_attention({8, 2, 128}, 16, contexts({1500}));
  HostAttention among =
      draw_attention({8, 2, 128}, 16, contexts({1500, 20, 3000, 1, 64, 900, 77, 128, 2000}));
  DeviceAttention first(alone), second(among);
  const std::vector<uint16_t> want = launch(first, first.inputs(), DecodeAttentionForm::streamed);
  for (const DecodeAttentionForm form : kForms) {
    std::vector<uint16_t> got = launch(second, second.inputs(), form);
    got.resize(want.size());
    ASSERT_EQ(difference(alone, want, got), "") << form_name(form);
    cuda::AttentionInputs inputs = first.inputs();
    inputs.step.max_decode_context = 40000;
    ASSERT_EQ(difference(alone, want, launch(first, inputs, form)), "") << form_name(form);
  }
}

// A NaN, or infinities that meet, make a row NaN, as the reference says; other rows do not mind.
TEST_F(DecodeAttention, NonFiniteInputsAreTheReferences) {
  for (const int32_t width : {64, 128}) {
    HostAttention host = draw_attention({4, 2, width}, 16, contexts({100, 100, 100, 100, 300}));
    const size_t key = 37 * host.kv_width() + 5;
    host.sequences[0].keys[key] = 0x7fc1;
    host.sequences[1].values[key] = 0x7f80;
    host.sequences[2].keys[key] = 0x7f80;
    host.sequences[3].query[3] = 0xff80;
    expect_equal(host);
  }
}

TEST_F(DecodeAttention, StepsWithoutDecodeRowsLaunchNothing) {
  const HostAttention host = draw_attention({4, 2, 64}, 16, {{9, 3}});
  DeviceAttention device(host);
  for (const DecodeAttentionForm form : kForms) {
    for (const uint16_t x : launch(device, device.inputs(), form)) ASSERT_EQ(x, kUntouched);
  }
}

TEST(DecodeAttentionShapes, RefusesWhatItDoesNotCoverByName) {
  const auto refusal = [](int32_t heads, int32_t kv_heads, int32_t width, int32_t page_size) {
    cuda::AttentionInputs inputs;
    inputs.query_heads = heads;
    inputs.query_stride = int64_t{heads} * width;
    inputs.pages = {nullptr, page_size, kv_heads, width, cuda::column_blocks(width)};
    return cuda::launch_decode_attention(inputs, DecodeAttentionForm::automatic, 132, nullptr, 0,
                                         nullptr)
        .message();
  };
  EXPECT_NE(refusal(4, 2, 256, 16).find("head width is 256"), std::string::npos);
  EXPECT_NE(refusal(4, 2, 48, 16).find("head width is 48"), std::string::npos);
  EXPECT_NE(refusal(5, 2, 64, 16), "");
  EXPECT_NE(refusal(4, 2, 64, 24).find("page size is 24"), std::string::npos);
  EXPECT_EQ(refusal(4, 2, 64, 16), "");
}

TEST(DecodeAttentionShapes, ScratchIsBoundedAndRefusedWhenItIsTooSmall) {
  EXPECT_EQ(cuda::decode_attention_scratch(8, 32, 4096),
            cuda::decode_attention_scratch(800, 32, 4096));
  EXPECT_GE(cuda::decode_attention_scratch(1, 512, 100), size_t{512} * 128 * 4);
  cuda::AttentionInputs inputs;
  inputs.query_heads = 8;
  inputs.query_stride = 1024;
  inputs.pages = {nullptr, 16, 2, 128, 2};
  inputs.step.decode_sequences = 1;
  inputs.step.max_decode_context = 1000;
  const Status status =
      cuda::launch_decode_attention(inputs, DecodeAttentionForm::spread, 132, nullptr, 0, nullptr);
  EXPECT_NE(status.message().find("bytes of scratch"), std::string::npos);
}

}  // namespace
}  // namespace exact::cuda_test
