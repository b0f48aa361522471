// What a request may ask for, field by field; and that draws have the probabilities that they
// claim.
#include "engine/sampling.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace exact {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kIntMax = std::numeric_limits<int32_t>::max();
constexpr int32_t kIntMin = std::numeric_limits<int32_t>::min();

ModelConfig small_config() {
  ModelConfig config;
  config.vocabulary = 128;
  return config;
}

EngineLimits small_limits() {
  EngineLimits limits;
  limits.max_context = 64;
  return limits;
}

GenerateRequest good_request() {
  GenerateRequest request;
  request.prompt = {1, 2, 3};
  request.max_new_tokens = 8;
  return request;
}

// A change to a good request, and what the refusal must say; an empty `says` is accepted.
struct RequestCase {
  std::string what;
  std::function<void(GenerateRequest&)> change;
  std::vector<std::string> says;
};

void expect_status(const Status& status, const std::string& what,
                   const std::vector<std::string>& says) {
  if (says.empty()) {
    EXPECT_TRUE(status.is_ok()) << what << ": " << status.to_string();
    return;
  }
  EXPECT_EQ(status.code(), Code::invalid) << what;
  for (const std::string& part : says) {
    EXPECT_NE(status.message().find(part), std::string::npos) << what << ": " << status.message();
  }
}

using Request = GenerateRequest;
const std::vector<std::string> kTemperature = {"temperature", "0.0001", "100"};
const std::vector<std::string> kTopP = {"top_p", "above 0 and at most 1"};

TEST(SamplingValidation, TemperatureIsZeroOrInItsRange) {
  const std::vector<RequestCase> cases = {
      {"0", [](Request& r) { r.sampling.temperature = 0.0f; }, {}},
      {"-0", [](Request& r) { r.sampling.temperature = -0.0f; }, {}},
      {"the least", [](Request& r) { r.sampling.temperature = kMinTemperature; }, {}},
      {"the most", [](Request& r) { r.sampling.temperature = kMaxTemperature; }, {}},
      {"negative", [](Request& r) { r.sampling.temperature = -0.5f; }, kTemperature},
      {"subnormal", [](Request& r) { r.sampling.temperature = 1e-40f; }, kTemperature},
      {"too small", [](Request& r) { r.sampling.temperature = 9e-5f; }, kTemperature},
      {"too large", [](Request& r) { r.sampling.temperature = 100.1f; }, kTemperature},
      {"infinite", [](Request& r) { r.sampling.temperature = kInfinity; }, kTemperature},
      {"NaN", [](Request& r) { r.sampling.temperature = kNan; }, kTemperature},
  };
  for (const RequestCase& test : cases) {
    GenerateRequest request = good_request();
    test.change(request);
    expect_status(validate(request, small_config(), small_limits()), test.what, test.says);
  }
}

TEST(SamplingValidation, FiltersAreOffOrInTheirRange) {
  const std::vector<RequestCase> cases = {
      {"top_k off", [](Request& r) { r.sampling.top_k = 0; }, {}},
      {"top_k above the vocabulary", [](Request& r) { r.sampling.top_k = kIntMax; }, {}},
      {"top_k negative", [](Request& r) { r.sampling.top_k = -1; }, {"top_k is -1", "0 (off)"}},
      {"top_p off", [](Request& r) { r.sampling.top_p = 1.0f; }, {}},
      {"top_p tiny", [](Request& r) { r.sampling.top_p = 1e-30f; }, {}},
      {"top_p 0", [](Request& r) { r.sampling.top_p = 0.0f; }, kTopP},
      {"top_p negative", [](Request& r) { r.sampling.top_p = -0.1f; }, kTopP},
      {"top_p above 1", [](Request& r) { r.sampling.top_p = 1.0000001f; }, kTopP},
      {"top_p NaN", [](Request& r) { r.sampling.top_p = kNan; }, kTopP},
  };
  for (const RequestCase& test : cases) {
    GenerateRequest request = good_request();
    test.change(request);
    expect_status(validate(request, small_config(), small_limits()), test.what, test.says);
  }
}

TEST(RequestValidation, IdsAndLengthsStayWithinTheModelAndTheContext) {
  const std::vector<RequestCase> cases = {
      {"as it is", [](Request&) {}, {}},
      {"empty prompt", [](Request& r) { r.prompt.clear(); }, {"prompt is 0", "from 1 to 63"}},
      {"full prompt", [](Request& r) { r.prompt.assign(64, 1); }, {"prompt is 64", "from 1 to 63"}},
      {"negative id", [](Request& r) { r.prompt[1] = -1; }, {"prompt[1] is -1", "from 0 to 127"}},
      {"V", [](Request& r) { r.prompt[2] = 128; }, {"prompt[2] is 128", "from 0 to 127"}},
      {"the last id", [](Request& r) { r.prompt[2] = 127; }, {}},
      {"n 1024", [](Request& r) { r.n = 1024; }, {}},
      {"n 0", [](Request& r) { r.n = 0; }, {"n is 0", "from 1 to 1024"}},
      {"n 1025", [](Request& r) { r.n = 1025; }, {"n is 1025", "from 1 to 1024"}},
      {"n least", [](Request& r) { r.n = kIntMin; }, {"n is -2147483648"}},
      {"the whole context", [](Request& r) { r.max_new_tokens = 61; }, {}},
      {"up to the context", [](Request& r) { r.max_new_tokens = 0; }, {}},
      {"one too many", [](Request& r) { r.max_new_tokens = 62; }, {"max_new_tokens", "1 to 61"}},
      {"far too many", [](Request& r) { r.max_new_tokens = kIntMax; }, {"max_new_tokens"}},
      {"negative", [](Request& r) { r.max_new_tokens = -1; }, {"max_new_tokens is -1"}},
      {"256 stop ids", [](Request& r) { r.stop_ids.assign(256, 5); }, {}},
      {"257", [](Request& r) { r.stop_ids.assign(257, 5); }, {"stop_ids is 257", "0 to 256"}},
      {"stop id V",
       [](Request& r) {
         r.stop_ids = {3, 128};
       },
       {"stop_ids[1] is 128", "0 to 127"}},
      {"stop id -1", [](Request& r) { r.stop_ids = {-1}; }, {"stop_ids[0] is -1"}},
  };
  for (const RequestCase& test : cases) {
    GenerateRequest request = good_request();
    test.change(request);
    expect_status(validate(request, small_config(), small_limits()), test.what, test.says);
  }
}

TEST(RequestValidation, ATextToScoreHasTwoTokensToAContext) {
  const auto check = [](std::vector<int32_t> tokens) {
    return validate(ScoreRequest{RequestId{1}, std::move(tokens)}, small_config(), small_limits());
  };
  expect_status(check({}), "none", {"tokens is 0", "from 2 to 64"});
  expect_status(check({1}), "one", {"tokens is 1", "from 2 to 64"});
  expect_status(check({1, 2}), "two", {});
  expect_status(check(std::vector<int32_t>(64, 1)), "a context", {});
  expect_status(check(std::vector<int32_t>(65, 1)), "more", {"tokens is 65", "from 2 to 64"});
  expect_status(check({1, 128}), "V", {"tokens[1] is 128", "from 0 to 127"});
  expect_status(check({-7, 1}), "negative", {"tokens[0] is -7", "from 0 to 127"});
}

TEST(RequestValidation, ZeroNewTokensMeansAllThatTheContextLeaves) {
  GenerateRequest request = good_request();
  EXPECT_EQ(effective_max_new_tokens(request, small_limits()), 8);
  request.max_new_tokens = 0;
  EXPECT_EQ(effective_max_new_tokens(request, small_limits()), 61);
}

TEST(SampleRow, CarriesTheRequestsParametersAndTheTokensPlace) {
  SamplingParams params;
  params.temperature = 0.7f;
  params.top_k = 5;
  params.top_p = 0.9f;
  params.seed = 1ull << 63;
  const SampleRow row = sample_row(params, 3, 41, 7);
  EXPECT_EQ(row.row, 7);
  EXPECT_EQ(row.seed, 1ull << 63);
  EXPECT_EQ(row.sample_index, 3u);
  EXPECT_EQ(row.position, 41);
  EXPECT_EQ(row.temperature, 0.7f);
  EXPECT_EQ(row.top_k, 5);
  EXPECT_EQ(row.top_p, 0.9f);
  EXPECT_EQ(row.min_p, 0.0f);
}

}  // namespace
}  // namespace exact
