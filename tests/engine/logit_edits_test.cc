// A sample's edits, counted as it grows, against a literal count of its tokens at every step; and
// that counting takes no memory.
#include "engine/logit_edits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "tests/support/random_data.h"

namespace exact {
namespace {

using Ids = std::vector<int32_t>;

GenerateRequest random_request(RandomData& data, int32_t vocabulary) {
  const auto some_ids = [&](int64_t most) {
    Ids ids(static_cast<size_t>(data.between(0, most)));
    for (int32_t& id : ids) id = static_cast<int32_t>(data.between(0, vocabulary - 1));
    return ids;
  };
  GenerateRequest request;
  request.prompt = some_ids(40);
  request.prompt.push_back(0);
  if (data.between(0, 1) == 0) request.sampling.repetition_penalty = 1.2f;
  if (data.between(0, 1) == 0) request.sampling.presence_penalty = 0.4f;
  if (data.between(0, 2) == 0) request.sampling.frequency_penalty = -0.2f;
  if (data.between(0, 1) == 0) {
    const Ids tokens = some_ids(6);
    for (const int32_t token : std::set<int32_t>(tokens.begin(), tokens.end())) {
      request.sampling.logit_bias.push_back({token, 0.25f * static_cast<float>(token) + 1.0f});
    }
  }
  if (data.between(0, 1) == 0) request.sampling.allowed_ids = some_ids(20);
  if (data.between(0, 1) == 0) request.sampling.banned_ids = some_ids(10);
  if (data.between(0, 1) == 0) request.min_new_tokens = static_cast<int32_t>(data.between(1, 9));
  request.masked = data.between(0, 1) == 0;
  return request;
}

// What the edits of a sample with these tokens must be.
std::vector<LogitEdit> count_edits(const GenerateRequest& request, const Ids& output,
                                   int32_t vocabulary) {
  const SamplingParams& sampling = request.sampling;
  const bool repeats = sampling.repetition_penalty != 1.0f;
  const bool counts =
      repeats || sampling.presence_penalty != 0.0f || sampling.frequency_penalty != 0.0f;
  std::vector<LogitEdit> edits;
  for (int32_t token = 0; token < vocabulary; token++) {
    const auto in_output = std::count(output.begin(), output.end(), token);
    const auto in_prompt = std::count(request.prompt.begin(), request.prompt.end(), token);
    LogitEdit edit{.token = token};
    if (counts) edit.count = static_cast<int32_t>(in_output);
    edit.seen = (repeats && in_prompt > 0) || edit.count > 0;
    bool biased = false;
    for (const TokenBias& bias : sampling.logit_bias) {
      if (bias.token != token) continue;
      edit.bias = bias.bias;
      biased = true;
    }
    if (edit.seen || biased) edits.push_back(edit);
  }
  return edits;
}

bool may_be_drawn(const GenerateRequest& request, const Ids& stop_ids, size_t generated,
                  const Ids* step_ids, int32_t token) {
  const auto has = [token](const Ids& ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  const SamplingParams& sampling = request.sampling;
  if (!sampling.allowed_ids.empty() && !has(sampling.allowed_ids)) return false;
  if (has(sampling.banned_ids)) return false;
  if (static_cast<int64_t>(generated) < request.min_new_tokens && has(stop_ids)) return false;
  return step_ids == nullptr || has(*step_ids);
}

class Recount {
 public:
  Recount(RandomData& data, int32_t vocabulary)
      : data_(data), vocabulary_(vocabulary), request_(random_request(data, vocabulary)) {
    for (int64_t i = data.between(0, 3); i > 0; i--) stop_ids_.push_back(random_token());
  }

  bool is_valid() const { return check_tokens_left(request_, stop_ids_, vocabulary_).is_ok(); }

  void run(int32_t new_tokens) {
    LogitEdits edits(request_, stop_ids_, vocabulary_, new_tokens);
    const LogitEdit* memory = edits.edits().data();
    for (int32_t i = 0; i < new_tokens; i++) {
      expect_equal(edits, nullptr);
      if (request_.masked) allow_some(edits);
      if (testing::Test::HasFailure()) return;
      output_.push_back(random_token());
      edits.add(output_.back());
      if (i > 0 && !edits.edits().empty()) {
        EXPECT_EQ(edits.edits().data(), memory) << "it took memory at token " << i;
      }
      memory = edits.edits().data();
    }
    expect_equal(edits, nullptr);
  }

 private:
  int32_t random_token() { return static_cast<int32_t>(data_.between(0, vocabulary_ - 1)); }

  void allow_some(LogitEdits& edits) {
    Ids ids;
    for (int32_t token = 0; token < vocabulary_; token++) {
      if (data_.between(0, 4) == 0) ids.push_back(token);
    }
    bool some = false;
    for (const int32_t id : ids) {
      some = some || may_be_drawn(request_, stop_ids_, output_.size(), nullptr, id);
    }
    const Status status = edits.allow(ids);
    EXPECT_EQ(status.is_ok(), some) << status.to_string();
    EXPECT_EQ(edits.has_step_ids(), some);
    expect_equal(edits, some ? &ids : nullptr);
  }

  void expect_equal(const LogitEdits& edits, const Ids* step_ids) const {
    const std::string where = data_.describe() + ", V " + std::to_string(vocabulary_) + ", token " +
                              std::to_string(output_.size());
    const auto want = count_edits(request_, output_, vocabulary_);
    ASSERT_EQ(edits.edits().size(), want.size()) << where;
    for (size_t i = 0; i < want.size(); i++) {
      const LogitEdit& got = edits.edits()[i];
      ASSERT_EQ(got.token, want[i].token) << where;
      ASSERT_EQ(got.count, want[i].count) << where << ", edit of " << got.token;
      ASSERT_EQ(got.seen, want[i].seen) << where << ", edit of " << got.token;
      ASSERT_EQ(got.bias, want[i].bias) << where << ", edit of " << got.token;
    }
    const std::span<const uint32_t> mask = edits.allowed();
    if (!mask.empty()) {
      ASSERT_EQ(mask.size(), static_cast<size_t>((vocabulary_ + 31) / 32));
    }
    for (int32_t token = 0; token < vocabulary_; token++) {
      const bool got =
          mask.empty() || (mask[static_cast<size_t>(token / 32)] >> (token % 32) & 1u) != 0;
      ASSERT_EQ(got, may_be_drawn(request_, stop_ids_, output_.size(), step_ids, token))
          << where << ", id " << token;
    }
    EXPECT_EQ(edits.edits_anything(), !want.empty() || !mask.empty());
  }

  RandomData& data_;
  int32_t vocabulary_;
  GenerateRequest request_;
  Ids stop_ids_, output_;
};

TEST(LogitEdits, EqualALiteralRecountAtEveryToken) {
  RandomData data(40);
  int ran = 0;
  for (int i = 0; i < 300; i++) {
    Recount recount(data, static_cast<int32_t>(data.between(4, 100)));
    if (!recount.is_valid()) continue;
    recount.run(30);
    ran++;
    if (HasFailure()) return;
  }
  EXPECT_GT(ran, 150);
}

TEST(LogitEdits, ARequestWithoutEditsNeedsNoDetail) {
  GenerateRequest request;
  request.prompt = {1, 2};
  const Ids stop_ids = {3};
  LogitEdits edits(request, stop_ids, 1000, 10);
  edits.add(1);
  EXPECT_FALSE(edits.edits_anything());
  EXPECT_TRUE(edits.edits().empty());
  EXPECT_TRUE(edits.allowed().empty());
}

TEST(LogitEdits, FillsADetailWithWhatTheBackendNeeds) {
  GenerateRequest request;
  request.prompt = {5};
  request.sampling.repetition_penalty = 1.5f;
  request.sampling.presence_penalty = 0.5f;
  request.sampling.frequency_penalty = 0.25f;
  request.sampling.banned_ids = {0};
  const LogitEdits edits(request, {}, 64, 10);
  SampleDetail detail;
  edits.fill(detail);
  EXPECT_EQ(detail.repetition_penalty, 1.5f);
  EXPECT_EQ(detail.presence_penalty, 0.5f);
  EXPECT_EQ(detail.frequency_penalty, 0.25f);
  ASSERT_EQ(detail.edits.size(), 1u);
  EXPECT_EQ(detail.edits[0].token, 5);
  ASSERT_EQ(detail.allowed.size(), 2u);
  EXPECT_EQ(detail.allowed[0], ~1u);
}

TEST(LogitEdits, AStepsIdsAreRefusedByName) {
  GenerateRequest request;
  request.prompt = {5};
  request.masked = true;
  request.sampling.banned_ids = {7};
  LogitEdits edits(request, {}, 40, 10);
  const auto refusal = [&](Ids ids) {
    const Status status = edits.allow(ids);
    EXPECT_EQ(status.code(), Code::invalid);
    EXPECT_FALSE(edits.has_step_ids());
    return status.message();
  };
  EXPECT_NE(refusal({}).find("at least one"), std::string::npos);
  EXPECT_NE(refusal({3, 40}).find("ids[1] is 40"), std::string::npos);
  EXPECT_NE(refusal({-1}).find("ids[0] is -1"), std::string::npos);
  EXPECT_NE(refusal({4, 4}).find("ids[1] is 4 after 4"), std::string::npos);
  EXPECT_NE(refusal({7}).find("banned_ids"), std::string::npos);
  EXPECT_TRUE(edits.allow(Ids{7, 8}).is_ok());
  EXPECT_EQ(edits.allowed()[0], 1u << 8);
  edits.add(8);
  EXPECT_FALSE(edits.has_step_ids());
  EXPECT_EQ(edits.allowed()[0], ~(1u << 7));
}

}  // namespace
}  // namespace exact
