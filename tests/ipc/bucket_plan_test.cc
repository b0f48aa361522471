// Cutting a stream of tensors into buckets: every byte once, in order.
#include "ipc/bucket_plan.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "tests/ipc/random.h"

namespace exact::ipc {
namespace {

using Sizes = std::vector<uint64_t>;

TEST(BucketPlan, CutsWhereTheBytesEnd) {
  const Sizes tensors = {5, 0, 7, 4};
  const BucketPlan plan = *BucketPlan::create(tensors, 6);
  EXPECT_EQ(plan.stream_bytes, 16u);
  ASSERT_EQ(plan.bucket_count(), 3u);
  EXPECT_EQ(plan.range(2), (BucketRange{12, 16}));
  EXPECT_EQ(slices(plan, tensors, 0), (std::vector<TensorSlice>{{0, 0, 5}, {2, 0, 1}}));
  EXPECT_EQ(slices(plan, tensors, 1), (std::vector<TensorSlice>{{2, 1, 6}}));
  EXPECT_EQ(slices(plan, tensors, 2), (std::vector<TensorSlice>{{3, 0, 4}}));
}

TEST(BucketPlan, EveryByteIsInExactlyOneBucketInOrder) {
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    Sizes tensors(random.below(12));
    for (uint64_t& bytes : tensors) bytes = random.below(4) == 0 ? 0 : random.below(300);
    const BucketPlan plan = *BucketPlan::create(tensors, 1 + random.below(200));
    size_t tensor = 0;  // where the next slice must begin
    uint64_t offset = 0;
    uint64_t stream = 0;
    for (uint64_t index = 0; index < plan.bucket_count(); ++index) {
      const BucketRange range = plan.range(index);
      ASSERT_EQ(range.begin, stream);
      ASSERT_GT(range.bytes(), 0u);
      ASSERT_TRUE(range.bytes() == plan.bucket_bytes || index + 1 == plan.bucket_count());
      for (const TensorSlice& slice : slices(plan, tensors, index)) {
        while (offset == tensors[tensor]) ++tensor, offset = 0;
        ASSERT_EQ(slice.tensor_index, tensor);
        ASSERT_EQ(slice.tensor_offset, offset);
        ASSERT_GT(slice.bytes, 0u);
        offset += slice.bytes;
        ASSERT_LE(offset, tensors[tensor]);
        stream += slice.bytes;
      }
      ASSERT_EQ(stream, range.end);
    }
    ASSERT_EQ(stream, std::accumulate(tensors.begin(), tensors.end(), uint64_t{0}));
  }
}

TEST(BucketPlan, AnEmptyStreamHasNoBuckets) {
  EXPECT_EQ(BucketPlan::create(Sizes{}, 10)->bucket_count(), 0u);
  EXPECT_EQ(BucketPlan::create(Sizes{0, 0}, 10)->bucket_count(), 0u);
}

TEST(BucketPlan, SizesNearTheEndOf64BitsDoNotWrap) {
  const Sizes tensors = {UINT64_MAX - 1, 1};
  const BucketPlan plan = *BucketPlan::create(tensors, UINT64_MAX / 2 + 1);
  ASSERT_EQ(plan.bucket_count(), 2u);
  EXPECT_EQ(plan.range(1), (BucketRange{UINT64_MAX / 2 + 1, UINT64_MAX}));
  EXPECT_EQ(slices(plan, tensors, 1).back(), (TensorSlice{1, 0, 1}));
}

TEST(BucketPlan, ImpossibleSizesAreRefused) {
  EXPECT_EQ(BucketPlan::create(Sizes{1}, 0).status().code(), Code::invalid);
  EXPECT_EQ(BucketPlan::create(Sizes{UINT64_MAX, 1}, 8).status().code(), Code::invalid);
}

}  // namespace
}  // namespace exact::ipc
