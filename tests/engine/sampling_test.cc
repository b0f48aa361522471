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

void expect_cases(const std::vector<RequestCase>& cases) {
  for (const RequestCase& test : cases) {
    GenerateRequest request = good_request();
    test.change(request);
    expect_status(validate(request, small_config(), small_limits()), test.what, test.says);
  }
}

TEST(SamplingValidation, PenaltiesAndMinPAreInTheirRange) {
  const std::vector<std::string> min_p = {"min_p is", "0 (off) to 1"};
  const std::vector<std::string> repetition = {"repetition_penalty is", "0.01 to 100"};
  const std::vector<std::string> presence = {"presence_penalty is", "-100 to 100"};
  const std::vector<std::string> frequency = {"frequency_penalty is", "-100 to 100"};
  expect_cases({
      {"min_p 1", [](Request& r) { r.sampling.min_p = 1.0f; }, {}},
      {"min_p negative", [](Request& r) { r.sampling.min_p = -0.1f; }, min_p},
      {"min_p above 1", [](Request& r) { r.sampling.min_p = 1.1f; }, min_p},
      {"min_p NaN", [](Request& r) { r.sampling.min_p = kNan; }, min_p},
      {"repetition least", [](Request& r) { r.sampling.repetition_penalty = 0.01f; }, {}},
      {"repetition most", [](Request& r) { r.sampling.repetition_penalty = 100.0f; }, {}},
      {"repetition 0", [](Request& r) { r.sampling.repetition_penalty = 0.0f; }, repetition},
      {"repetition 101", [](Request& r) { r.sampling.repetition_penalty = 101.0f; }, repetition},
      {"repetition NaN", [](Request& r) { r.sampling.repetition_penalty = kNan; }, repetition},
      {"presence most", [](Request& r) { r.sampling.presence_penalty = -100.0f; }, {}},
      {"presence 101", [](Request& r) { r.sampling.presence_penalty = 101.0f; }, presence},
      {"presence NaN", [](Request& r) { r.sampling.presence_penalty = kNan; }, presence},
      {"frequency most", [](Request& r) { r.sampling.frequency_penalty = 100.0f; }, {}},
      {"frequency -101", [](Request& r) { r.sampling.frequency_penalty = -101.0f; }, frequency},
      {"frequency NaN", [](Request& r) { r.sampling.frequency_penalty = kNan; }, frequency},
  });
}

std::vector<TokenBias> biases(int32_t count) {
  std::vector<TokenBias> out;
  for (int32_t i = 0; i < count; i++) out.push_back({i, 1.0f});
  return out;
}

std::vector<int32_t> all_ids() {
  std::vector<int32_t> ids(128);
  for (size_t i = 0; i < ids.size(); i++) ids[i] = static_cast<int32_t>(i);
  return ids;
}

TEST(SamplingValidation, BiasesNameATokenOnce) {
  const std::vector<std::string> range = {"bias of token 3", "-1000 to 1000"};
  expect_cases({
      {"each token", [](Request& r) { r.sampling.logit_bias = biases(128); }, {}},
      {"the most",
       [](Request& r) {
         r.sampling.logit_bias = {{3, 1000.0f}, {4, -1000.0f}};
       },
       {}},
      {"too many",
       [](Request& r) { r.sampling.logit_bias = biases(1025); },
       {"logit_bias is 1025", "0 to 1024"}},
      {"too large",
       [](Request& r) {
         r.sampling.logit_bias = {{3, 1001.0f}};
       },
       range},
      {"infinite",
       [](Request& r) {
         r.sampling.logit_bias = {{3, -kInfinity}};
       },
       range},
      {"NaN",
       [](Request& r) {
         r.sampling.logit_bias = {{3, kNan}};
       },
       range},
      {"V",
       [](Request& r) {
         r.sampling.logit_bias = {{1, 0}, {128, 0}};
       },
       {"logit_bias[1] is"}},
      {"twice",
       [](Request& r) {
         r.sampling.logit_bias = {{5, 1}, {4, 1}, {5, 1}};
       },
       {"names token 5 twice"}},
  });
}

TEST(SamplingValidation, MasksLeaveAToken) {
  expect_cases({
      {"one is allowed", [](Request& r) { r.sampling.allowed_ids = {127}; }, {}},
      {"V", [](Request& r) { r.sampling.allowed_ids = {128}; }, {"allowed_ids[0] is 128"}},
      {"negative",
       [](Request& r) {
         r.sampling.banned_ids = {0, -1};
       },
       {"banned_ids[1] is -1"}},
      {"too many",
       [](Request& r) { r.sampling.banned_ids.assign(129, 1); },
       {"banned_ids is 129", "0 to 128"}},
      {"all are banned",
       [](Request& r) { r.sampling.banned_ids = all_ids(); },
       {"banned_ids", "at least one"}},
      {"all but one",
       [](Request& r) {
         r.sampling.banned_ids = all_ids();
         r.sampling.banned_ids.pop_back();
       },
       {}},
      {"allowed, and banned",
       [](Request& r) {
         r.sampling.allowed_ids = {3, 4};
         r.sampling.banned_ids = {4, 3};
       },
       {"banned_ids"}},
      {"stop ids alone, from the first token",
       [](Request& r) {
         r.sampling.allowed_ids = r.stop_ids = {3, 4};
       },
       {}},
      {"stop ids alone, later",
       [](Request& r) {
         r.sampling.allowed_ids = r.stop_ids = {3, 4};
         r.min_new_tokens = 1;
       },
       {"min_new_tokens", "allowed_ids"}},
  });
}

TEST(RequestValidation, StopsAndForcedTokensFitTheNewOnes) {
  expect_cases({
      {"64 stop sequences",
       [](Request& r) {
         r.stop_sequences.assign(64, {1, 2});
       },
       {}},
      {"65",
       [](Request& r) { r.stop_sequences.assign(65, {1}); },
       {"stop_sequences is 65", "0 to 64"}},
      {"32 ids", [](Request& r) { r.stop_sequences = {std::vector<int32_t>(32, 1)}; }, {}},
      {"33 ids",
       [](Request& r) {
         r.stop_sequences = {{1}, std::vector<int32_t>(33, 1)};
       },
       {"stop_sequences[1] is 33", "1 to 32"}},
      {"empty", [](Request& r) { r.stop_sequences = {{}}; }, {"stop_sequences[0] is 0"}},
      {"V",
       [](Request& r) {
         r.stop_sequences = {{7, 128}};
       },
       {"stop_sequences[0][1] is 128"}},
      {"min all", [](Request& r) { r.min_new_tokens = 8; }, {}},
      {"min more", [](Request& r) { r.min_new_tokens = 9; }, {"min_new_tokens is 9", "0 to 8"}},
      {"min negative", [](Request& r) { r.min_new_tokens = -1; }, {"min_new_tokens is -1"}},
      {"min of the context",
       [](Request& r) {
         r.max_new_tokens = 0;
         r.min_new_tokens = 61;
       },
       {}},
      {"forced all", [](Request& r) { r.forced_ids.assign(8, 5); }, {}},
      {"forced more", [](Request& r) { r.forced_ids.assign(9, 5); }, {"forced_ids is 9", "0 to 8"}},
      {"forced V", [](Request& r) { r.forced_ids = {128}; }, {"forced_ids[0] is 128"}},
      {"priority", [](Request& r) { r.priority = -1000; }, {}},
      {"priority 1001", [](Request& r) { r.priority = 1001; }, {"priority is 1001", "-1000 to"}},
  });
}

TEST(RequestValidation, ReportsHaveABound) {
  expect_cases({
      {"top 64", [](Request& r) { r.report.top_logprobs = 64; }, {}},
      {"top 65", [](Request& r) { r.report.top_logprobs = 65; }, {"top_logprobs is 65", "0 to 64"}},
      {"top -1", [](Request& r) { r.report.top_logprobs = -1; }, {"top_logprobs is -1"}},
      {"kept sets of all", [](Request& r) { r.report.kept_set = true; }, {}},
  });
  ModelConfig config = small_config();
  config.vocabulary = 151936;
  EngineLimits limits = small_limits();
  limits.max_context = 8192;
  GenerateRequest request = good_request();
  request.report.kept_set = true;
  request.max_new_tokens = 110;
  expect_status(validate(request, config, limits), "110 whole sets", {});
  request.n = 2;
  expect_status(validate(request, config, limits), "220", {"kept_set is 16712960", "8388608 ids"});
  request.max_new_tokens = 4000;
  for (const auto& change : std::initializer_list<std::function<void(SamplingParams&)>>{
           [](SamplingParams& s) { s.top_k = 200; }, [](SamplingParams& s) { s.top_p = 0.9f; },
           [](SamplingParams& s) { s.min_p = 0.1f; }, [](SamplingParams& s) { s.temperature = 0; },
           [](SamplingParams& s) {
             s.allowed_ids = {1, 2, 3};
           }}) {
    GenerateRequest smaller = request;
    change(smaller.sampling);
    expect_status(validate(smaller, config, limits), "a bound", {});
  }
  EXPECT_EQ(kept_ids_limit(request), kMaxKeptIds / 2);
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
  params.min_p = 0.02f;
  params.seed = 1ull << 63;
  const SampleRow row = sample_row(params, 3, 41, 7);
  EXPECT_EQ(row.row, 7);
  EXPECT_EQ(row.seed, 1ull << 63);
  EXPECT_EQ(row.sample_index, 3u);
  EXPECT_EQ(row.position, 41);
  EXPECT_EQ(row.temperature, 0.7f);
  EXPECT_EQ(row.top_k, 5);
  EXPECT_EQ(row.top_p, 0.9f);
  EXPECT_EQ(row.min_p, 0.02f);
  EXPECT_EQ(row.detail, nullptr);
}

}  // namespace
}  // namespace exact
