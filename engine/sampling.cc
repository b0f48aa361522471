#include "engine/sampling.h"

#include <algorithm>
#include <span>
#include <sstream>
#include <string>

namespace exact {
namespace {

template <class Value>
Status refuse(const std::string& field, Value value, const std::string& range) {
  std::ostringstream text;
  text << field << " is " << value << "; it must be " << range;
  return Status(Code::invalid, text.str());
}

std::string from_to(int64_t low, int64_t high) {
  return "from " + std::to_string(low) + " to " + std::to_string(high);
}

Status check_ids(const char* field, std::span<const int32_t> ids, int32_t vocabulary) {
  const auto bad =
      std::find_if(ids.begin(), ids.end(), [=](int32_t id) { return id < 0 || id >= vocabulary; });
  if (bad == ids.end()) return {};
  return refuse(std::string(field) + "[" + std::to_string(bad - ids.begin()) + "]", *bad,
                from_to(0, int64_t{vocabulary} - 1) + ", an id of the vocabulary");
}

}  // namespace

// Comparisons are written so that NaN fails them.
Status validate(const SamplingParams& params) {
  const float temperature = params.temperature;
  if (!(temperature == 0.0f ||
        (temperature >= kMinTemperature && temperature <= kMaxTemperature))) {
    return refuse("temperature", temperature, "0 (greedy), or from 0.0001 to 100");
  }
  if (params.top_k < 0) return refuse("top_k", params.top_k, "0 (off) or more");
  if (!(params.top_p > 0.0f && params.top_p <= 1.0f)) {
    return refuse("top_p", params.top_p, "above 0 and at most 1 (off)");
  }
  return {};
}

Status validate(const GenerateRequest& request, const ModelConfig& config,
                const EngineLimits& limits) {
  const int64_t context = limits.max_context;
  const auto prompt_size = static_cast<int64_t>(request.prompt.size());
  // The size comes first: no loop over more than a context of ids.
  if (prompt_size < 1 || prompt_size >= context) {
    return refuse("the length of prompt", prompt_size,
                  from_to(1, context - 1) + ": a context is " + std::to_string(context) +
                      " positions, and one is for a new token");
  }
  EXACT_RETURN_IF_ERROR(check_ids("prompt", request.prompt, config.vocabulary));
  if (request.n < 1 || request.n > kMaxSamples) {
    return refuse("n", request.n, from_to(1, kMaxSamples));
  }
  if (request.max_new_tokens < 0 || request.max_new_tokens > context - prompt_size) {
    return refuse("max_new_tokens", request.max_new_tokens,
                  from_to(1, context - prompt_size) +
                      ", or 0 for all that the context leaves: prompt and new tokens share " +
                      std::to_string(context) + " positions");
  }
  EXACT_RETURN_IF_ERROR(validate(request.sampling));
  if (request.stop_ids.size() > static_cast<size_t>(kMaxStopIds)) {
    return refuse("the length of stop_ids", request.stop_ids.size(), from_to(0, kMaxStopIds));
  }
  return check_ids("stop_ids", request.stop_ids, config.vocabulary);
}

Status validate(const ScoreRequest& request, const ModelConfig& config,
                const EngineLimits& limits) {
  const auto size = static_cast<int64_t>(request.tokens.size());
  if (size < kMinScoredTokens || size > limits.max_context) {
    return refuse("the length of tokens", size,
                  from_to(kMinScoredTokens, limits.max_context) +
                      ": every token but the first gets a log-probability");
  }
  return check_ids("tokens", request.tokens, config.vocabulary);
}

int32_t effective_max_new_tokens(const GenerateRequest& request, const EngineLimits& limits) {
  const auto left = limits.max_context - static_cast<int32_t>(request.prompt.size());
  return request.max_new_tokens == 0 ? left : std::min(request.max_new_tokens, left);
}

SampleRow sample_row(const SamplingParams& params, uint32_t sample_index, int32_t position,
                     int64_t row) {
  SampleRow out;
  out.row = row;
  out.seed = params.seed;
  out.sample_index = sample_index;
  out.position = position;
  out.temperature = params.temperature;
  out.top_k = params.top_k;
  out.top_p = params.top_p;
  return out;
}

}  // namespace exact
