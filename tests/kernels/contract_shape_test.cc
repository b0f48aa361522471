// The domain of the contract, and where its orders of summation change.
#include <gtest/gtest.h>

#include <string>

#include "kernels/contract/attention.h"
#include "kernels/contract/log_softmax.h"
#include "kernels/contract/reduce.h"
#include "kernels/contract/shape.h"

namespace exact {
namespace {

using contract::LogSumForm;

void expect_refused(const Status& status, const std::string& dimension) {
  EXPECT_EQ(status.code(), Code::unsupported) << dimension;
  EXPECT_EQ(status.message().find(dimension), 0u) << status.to_string();
  EXPECT_NE(status.message().find(':'), std::string::npos) << "no advice: " << status.message();
}

TEST(Domain, RefusesLinearShapesByName) {
  EXPECT_TRUE(contract::check_linear_shape(8, 16).is_ok());
  EXPECT_TRUE(contract::check_linear_shape(151936, 12288).is_ok());
  for (const int64_t n : {-8, 0, 4, 5003, 1 << 25})
    expect_refused(contract::check_linear_shape(n, 64), "out_features is " + std::to_string(n));
  for (const int64_t k : {-16, 0, 8, 1000, 1 << 25})
    expect_refused(contract::check_linear_shape(64, k), "in_features is " + std::to_string(k));
}

TEST(Domain, RefusesNormWidthsByName) {
  EXPECT_TRUE(contract::check_norm_width(64).is_ok());
  EXPECT_TRUE(contract::check_norm_width(8192).is_ok());
  for (const int64_t width : {0, 16, 100, 4098})
    expect_refused(contract::check_norm_width(width), "norm width is");
}

TEST(Domain, RefusesHeadWidthsByName) {
  for (const int64_t width : {32, 64, 80, 96, 128, 256})
    EXPECT_TRUE(contract::check_head_width(width).is_ok()) << width;
  for (const int64_t width : {0, 16, 48, 72, 112, 192, 512, 1 << 20})
    expect_refused(contract::check_head_width(width), "head width is");
  expect_refused(contract::check_attention_shape(8, 0, 64), "kv heads is 0");
  expect_refused(contract::check_attention_shape(9, 2, 64), "query heads is 9");
  expect_refused(contract::check_attention_shape(0, 2, 64), "query heads is 0");
  EXPECT_TRUE(contract::check_attention_shape(14, 2, 64).is_ok());
}

TEST(Domain, RefusesVocabulariesByName) {
  for (const int64_t vocabulary : {32, 2048, 32000, 128256, 151936, 1 << 20})
    EXPECT_TRUE(contract::check_vocabulary(vocabulary).is_ok()) << vocabulary;
  for (const int64_t vocabulary : {0, 24, 50257, 5004, (1 << 20) + 8})
    expect_refused(contract::check_vocabulary(vocabulary), "vocabulary is");
}

TEST(LogSoftmaxOrder, ChangesWhereKernelsDo) {
  EXPECT_EQ(contract::log_sum_form(2048), LogSumForm::warp);
  EXPECT_EQ(contract::log_sum_form(2056), LogSumForm::strided);
  EXPECT_EQ(contract::log_sum_form(9216), LogSumForm::strided);
  EXPECT_EQ(contract::log_sum_form(9224), LogSumForm::grouped);
  EXPECT_EQ(contract::log_sum_form(12248), LogSumForm::grouped);
  EXPECT_EQ(contract::log_sum_form(12256), LogSumForm::grouped_then_tail);
}

TEST(LogSoftmaxOrder, AddsEveryElementOnce) {
  for (const int64_t vocabulary : {32, 1000, 2048, 2056, 9216, 9224, 12256, 32000, 50257}) {
    for (const int64_t row : {0, 1, 2, 3}) {
      const float count = contract::log_softmax_sum(vocabulary, row, [](int64_t) { return 1.0f; });
      EXPECT_EQ(count, static_cast<float>(vocabulary)) << row;
    }
  }
}

TEST(RowSumOrder, AddsEveryElementOnce) {
  for (const int64_t width : {32, 64, 80, 127, 128, 129, 1022, 1024, 8160, 8161, 8192, 20000}) {
    for (const int64_t rows : {1, 2, 15, 16, 1000}) {
      const auto order = contract::row_sum_order(width, rows);
      const float count = contract::row_sum(order, width, [](int64_t) { return 1.0f; });
      EXPECT_EQ(count, static_cast<float>(width)) << rows;
    }
  }
}

TEST(RowSumOrder, DependsOnTheWidthAloneFromSixteenRowsOn) {
  for (const int64_t width : {64, 128, 1024, 8192, 20000}) {
    const auto order = contract::row_sum_order(width, contract::kManyRows);
    for (const int64_t rows : {17, 64, 511, 512, 100000}) {
      EXPECT_EQ(contract::row_sum_order(width, rows).threads, order.threads) << width;
      EXPECT_EQ(contract::row_sum_order(width, rows).warp_width, order.warp_width) << width;
    }
  }
  EXPECT_EQ(contract::row_sum_order(8160, 16).threads, 32);
  EXPECT_EQ(contract::row_sum_order(8161, 16).threads, 512);
  EXPECT_NE(contract::row_sum_order(1024, 1).threads, contract::row_sum_order(1024, 16).threads);
}

TEST(Attention, QuadLanesTakePairsOfColumns) {
  const int want[] = {0, 0, 1, 1, 2, 2, 3, 3, 0, 0};
  for (int column = 0; column < 10; column++)
    EXPECT_EQ(contract::quad_lane(column), want[column]) << column;
}

}  // namespace
}  // namespace exact
