// A weight update's segment: what the writer sealed is what the reader gets, or `corrupt`.
#include "ipc/weight_shm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ipc/shm_region.h"
#include "tests/ipc/child_process.h"
#include "tests/ipc/random.h"

namespace exact::ipc {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSession = 0x0123456789abcdef;
constexpr uint64_t kBucketBytes = 1'000;

// The worker's segment, the trainer's writer, and the raw bytes between them.
class WeightShmTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto segment = WeightSegment::create(kSession, kBucketBytes);
    ASSERT_TRUE(segment.is_ok()) << segment.status().to_string();
    segment_ = std::move(segment).value();
    auto writer =
        WeightSegmentWriter::open(segment_->name(), segment_->bytes(), kSession, kBucketBytes);
    ASSERT_TRUE(writer.is_ok()) << writer.status().to_string();
    writer_ = std::move(writer).value();
    auto raw = ShmRegion::open(segment_->name(), segment_->bytes());
    ASSERT_TRUE(raw.is_ok()) << raw.status().to_string();
    raw_ = std::move(raw).value();
  }

  std::string write(uint64_t index, uint64_t bytes) {
    const std::string payload = Random(index + 1).bytes(bytes);
    std::memcpy(writer_->begin_bucket(index).data(), payload.data(), bytes);
    writer_->finish_bucket(index, bytes);
    return payload;
  }
  void expect_corrupt(uint64_t index, uint64_t bytes, const std::string& why) {
    const Status status = segment_->bucket(index, bytes).status();
    EXPECT_EQ(status.code(), Code::corrupt) << status.to_string();
    EXPECT_THAT(status.message(), HasSubstr(why));
  }
  // A word of a half's header.
  uint64_t* word(uint64_t half, uint64_t offset) {
    return reinterpret_cast<uint64_t*>(raw_->bytes().data() +
                                       half * weight_half_bytes(kBucketBytes) + offset);
  }

  std::unique_ptr<WeightSegment> segment_;
  std::unique_ptr<WeightSegmentWriter> writer_;
  std::unique_ptr<ShmRegion> raw_;
};

std::string text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST_F(WeightShmTest, BucketsComeAsTheyWereWritten) {
  for (uint64_t index = 0; index < 20; ++index) {
    const std::string payload = write(index, index == 19 ? 123 : kBucketBytes);
    const auto bucket = segment_->bucket(index, payload.size());
    ASSERT_TRUE(bucket.is_ok()) << bucket.status().to_string();
    EXPECT_EQ(text(*bucket), payload) << "bucket " << index;
  }
}

TEST_F(WeightShmTest, HalvesDoNotOverlap) {
  const std::string even = write(4, kBucketBytes), odd = write(5, kBucketBytes);
  EXPECT_EQ(text(*segment_->bucket(4, kBucketBytes)), even);
  EXPECT_EQ(text(*segment_->bucket(5, kBucketBytes)), odd);
  EXPECT_EQ(segment_->bytes(), 2 * (64 + 1'024 - 64 + 64));
  EXPECT_EQ(writer_->begin_bucket(0).size(), kBucketBytes);
}

TEST_F(WeightShmTest, LayoutIsTheProtocols) {
  const std::string payload = write(3, 10);
  EXPECT_EQ(std::memcmp(word(1, 0), "EXBUCKT1", 8), 0);
  EXPECT_EQ(*word(1, 8), kSession);
  EXPECT_EQ(*word(1, 16), 3u);
  EXPECT_EQ(*word(1, 24), 10u);
  EXPECT_EQ(*word(1, 56), 4u);
  EXPECT_EQ(std::memcmp(word(1, 64), payload.data(), 10), 0);
}

TEST_F(WeightShmTest, UnwrittenOrUnfinishedBucketIsCorrupt) {
  expect_corrupt(0, kBucketBytes, "has not finished");
  write(0, kBucketBytes);
  writer_->begin_bucket(2);  // and breaks off
  expect_corrupt(2, kBucketBytes, "has not finished");
  expect_corrupt(0, kBucketBytes, "has not finished");
}

TEST_F(WeightShmTest, AnotherBucketsBytesAreCorrupt) {
  write(0, kBucketBytes);
  expect_corrupt(2, kBucketBytes, "holds bucket 0");
  write(2, kBucketBytes);
  expect_corrupt(0, kBucketBytes, "holds bucket 2");
}

TEST_F(WeightShmTest, EachWrongHeaderWordIsNamed) {
  const auto try_word = [&](uint64_t offset, uint64_t value, const std::string& why) {
    write(0, kBucketBytes);
    *word(0, offset) = value;
    expect_corrupt(0, kBucketBytes, why);
  };
  try_word(0, 0, "magic");
  try_word(8, kSession + 1, "session");
  try_word(16, 2, "holds bucket 2");
  try_word(24, kBucketBytes - 1, "999 bytes, the manifest says 1000");
  try_word(24, UINT64_MAX, "bytes, the manifest says");
  try_word(32, 0, "checksum");
  try_word(40, 1, "not zero");
  try_word(48, 1, "not zero");
  try_word(56, 0, "has not finished");
  try_word(56, 3, "commit word of bucket 2");
}

TEST_F(WeightShmTest, EveryFlippedBitOfHeaderOrPayloadIsCorrupt) {
  write(0, 40);
  std::byte* bytes = raw_->bytes().data();
  for (size_t bit = 0; bit < 8 * (64 + 40); ++bit) {
    const std::byte mask{static_cast<unsigned char>(1u << (bit % 8))};
    bytes[bit / 8] ^= mask;
    EXPECT_EQ(segment_->bucket(0, 40).status().code(), Code::corrupt) << "bit " << bit;
    bytes[bit / 8] ^= mask;
  }
  EXPECT_TRUE(segment_->bucket(0, 40).is_ok());
}

TEST_F(WeightShmTest, WriterOfAnotherSessionIsCorrupt) {
  auto stranger =
      WeightSegmentWriter::open(segment_->name(), segment_->bytes(), kSession + 1, kBucketBytes);
  ASSERT_TRUE(stranger.is_ok());
  (*stranger)->begin_bucket(0);
  (*stranger)->finish_bucket(0, kBucketBytes);
  expect_corrupt(0, kBucketBytes, "session");
}

TEST_F(WeightShmTest, WriterRefusesSizesThatDoNotFit) {
  const auto open = [&](const std::string& name, uint64_t bytes, uint64_t bucket_bytes) {
    return WeightSegmentWriter::open(name, bytes, kSession, bucket_bytes).status().code();
  };
  EXPECT_EQ(open(segment_->name(), segment_->bytes() + 64, kBucketBytes), Code::corrupt);
  EXPECT_EQ(open(segment_->name(), weight_segment_bytes(2'000), 2'000), Code::corrupt);
  EXPECT_EQ(open(segment_->name(), segment_->bytes(), 0), Code::invalid);
  EXPECT_EQ(open(segment_->name(), segment_->bytes(), UINT64_MAX), Code::invalid);
  EXPECT_EQ(open("exact-rollout.0000000000000000", segment_->bytes(), kBucketBytes),
            Code::not_found);
  EXPECT_EQ(open("../shadow", segment_->bytes(), kBucketBytes), Code::invalid);
}

TEST(WeightShm, SegmentRefusesSizesOutOfRange) {
  EXPECT_EQ(WeightSegment::create(1, 0).status().code(), Code::invalid);
  EXPECT_EQ(WeightSegment::create(1, kMaxBucketBytes + 1).status().code(), Code::invalid);
  EXPECT_EQ(WeightSegment::create(1, UINT64_MAX).status().code(), Code::invalid);
}

TEST_F(WeightShmTest, WriterInAnotherProcessCanBeKilledAtAnyTime) {
  ChildProcess trainer([&] {
    std::memset(writer_->begin_bucket(0).data(), 'a', kBucketBytes);
    writer_->finish_bucket(0, kBucketBytes);
    std::memset(writer_->begin_bucket(1).data(), 'b', kBucketBytes / 2);
    return std::string("half way");
  });
  ASSERT_EQ(trainer.line(), "half way");
  trainer.kill();
  const auto whole = segment_->bucket(0, kBucketBytes);
  ASSERT_TRUE(whole.is_ok()) << whole.status().to_string();
  EXPECT_EQ(text(*whole), std::string(kBucketBytes, 'a'));
  expect_corrupt(1, kBucketBytes, "has not finished");
}

using WeightShmDeathTest = WeightShmTest;

TEST_F(WeightShmDeathTest, MisuseOfTheWriterIsABug) {
  EXPECT_DEATH(writer_->finish_bucket(0, 1), "check failed");
  writer_->begin_bucket(0);
  EXPECT_DEATH(writer_->finish_bucket(1, 1), "check failed");
  EXPECT_DEATH(writer_->finish_bucket(0, kBucketBytes + 1), "check failed");
}

}  // namespace
}  // namespace exact::ipc
