#include "engine/sampling.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <sstream>
#include <string>

#include "engine/logit_edits.h"
#include "kernels/contract/logit_edits.h"

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

bool in_range(float value, float low, float high) {
  return value >= low && value <= high;
}

Status check_penalties(const SamplingParams& params) {
  if (!in_range(params.repetition_penalty, kMinRepetitionPenalty, kMaxRepetitionPenalty)) {
    return refuse("repetition_penalty", params.repetition_penalty, "from 0.01 to 100; 1 is off");
  }
  if (!in_range(params.presence_penalty, -kMaxPenalty, kMaxPenalty)) {
    return refuse("presence_penalty", params.presence_penalty, "from -100 to 100; 0 is off");
  }
  if (!in_range(params.frequency_penalty, -kMaxPenalty, kMaxPenalty)) {
    return refuse("frequency_penalty", params.frequency_penalty, "from -100 to 100; 0 is off");
  }
  return {};
}

Status check_logit_bias(std::span<const TokenBias> biases, int32_t vocabulary) {
  if (biases.size() > static_cast<size_t>(kMaxLogitBiases)) {
    return refuse("the length of logit_bias", biases.size(), from_to(0, kMaxLogitBiases));
  }
  std::vector<int32_t> tokens;
  tokens.reserve(biases.size());
  for (const TokenBias& bias : biases) {
    tokens.push_back(bias.token);
    if (!in_range(bias.bias, -kMaxLogitBias, kMaxLogitBias)) {
      return refuse("the bias of token " + std::to_string(bias.token) + " in logit_bias", bias.bias,
                    "from -1000 to 1000; banned_ids bans a token");
    }
  }
  EXACT_RETURN_IF_ERROR(check_ids("logit_bias", tokens, vocabulary));
  std::sort(tokens.begin(), tokens.end());
  const auto twice = std::adjacent_find(tokens.begin(), tokens.end());
  if (twice == tokens.end()) return {};
  return Status(Code::invalid, "logit_bias names token " + std::to_string(*twice) +
                                   " twice; give it one bias, the sum");
}

Status check_id_list(const char* field, std::span<const int32_t> ids, int32_t vocabulary) {
  if (ids.size() > static_cast<size_t>(vocabulary)) {
    return refuse("the length of " + std::string(field), ids.size(), from_to(0, vocabulary));
  }
  return check_ids(field, ids, vocabulary);
}

Status check_stops(const GenerateRequest& request, int32_t vocabulary) {
  if (request.stop_ids.size() > static_cast<size_t>(kMaxStopIds)) {
    return refuse("the length of stop_ids", request.stop_ids.size(), from_to(0, kMaxStopIds));
  }
  EXACT_RETURN_IF_ERROR(check_ids("stop_ids", request.stop_ids, vocabulary));
  const auto& sequences = request.stop_sequences;
  if (sequences.size() > static_cast<size_t>(kMaxStopSequences)) {
    return refuse("the length of stop_sequences", sequences.size(), from_to(0, kMaxStopSequences));
  }
  for (size_t i = 0; i < sequences.size(); i++) {
    const std::string name = "stop_sequences[" + std::to_string(i) + "]";
    if (sequences[i].empty() || sequences[i].size() > static_cast<size_t>(kMaxStopSequenceIds)) {
      return refuse("the length of " + name, sequences[i].size(), from_to(1, kMaxStopSequenceIds));
    }
    EXACT_RETURN_IF_ERROR(check_ids(name.c_str(), sequences[i], vocabulary));
  }
  return {};
}

// Where neither top-p nor min-p makes the kept sets smaller than anybody knows in advance.
Status check_kept_sets(const GenerateRequest& request, int32_t vocabulary, int64_t new_tokens) {
  const SamplingParams& sampling = request.sampling;
  if (!request.report.kept_set || sampling.top_p < 1.0f || sampling.min_p > 0.0f) return {};
  int64_t kept = vocabulary;
  if (sampling.top_k > 0) kept = std::min<int64_t>(kept, sampling.top_k);
  if (!sampling.allowed_ids.empty()) kept = std::min(kept, std::ssize(sampling.allowed_ids));
  if (sampling.temperature == 0.0f) kept = 1;
  const int64_t ids = new_tokens * kept;
  if (ids <= kept_ids_limit(request)) return {};
  return refuse("the size of kept_set", ids,
                "at most " + std::to_string(kept_ids_limit(request)) + " ids a sample, " +
                    std::to_string(kMaxKeptIds) +
                    " a request: use top_k, top_p or min_p, or lower max_new_tokens or n");
}

Status check_report(const GenerateRequest& request, int32_t vocabulary, int64_t new_tokens) {
  const int32_t most = std::min(contract::kMaxTopLogprobs, vocabulary);
  if (request.report.top_logprobs < 0 || request.report.top_logprobs > most) {
    return refuse("top_logprobs", request.report.top_logprobs, from_to(0, most));
  }
  return check_kept_sets(request, vocabulary, new_tokens);
}

// What concerns the new tokens of a request, `new_tokens` of them at most.
Status check_new_tokens(const GenerateRequest& request, int32_t vocabulary, int64_t new_tokens) {
  if (request.min_new_tokens < 0 || request.min_new_tokens > new_tokens) {
    return refuse("min_new_tokens", request.min_new_tokens,
                  from_to(0, new_tokens) + ": at most max_new_tokens");
  }
  if (static_cast<int64_t>(request.forced_ids.size()) > new_tokens) {
    return refuse("the length of forced_ids", request.forced_ids.size(),
                  from_to(0, new_tokens) + ": at most max_new_tokens");
  }
  return check_ids("forced_ids", request.forced_ids, vocabulary);
}

}  // namespace

// Comparisons are written so that NaN fails them.
Status validate(const SamplingParams& params, int32_t vocabulary) {
  const float temperature = params.temperature;
  if (!(temperature == 0.0f || in_range(temperature, kMinTemperature, kMaxTemperature))) {
    return refuse("temperature", temperature, "0 (greedy), or from 0.0001 to 100");
  }
  if (params.top_k < 0) return refuse("top_k", params.top_k, "0 (off) or more");
  if (!(params.top_p > 0.0f && params.top_p <= 1.0f)) {
    return refuse("top_p", params.top_p, "above 0 and at most 1 (off)");
  }
  if (!in_range(params.min_p, 0.0f, 1.0f)) {
    return refuse("min_p", params.min_p, "from 0 (off) to 1");
  }
  EXACT_RETURN_IF_ERROR(check_penalties(params));
  EXACT_RETURN_IF_ERROR(check_logit_bias(params.logit_bias, vocabulary));
  EXACT_RETURN_IF_ERROR(check_id_list("allowed_ids", params.allowed_ids, vocabulary));
  return check_id_list("banned_ids", params.banned_ids, vocabulary);
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
  if (request.first_sample < 0 || request.first_sample > kMaxSamples - request.n) {
    return refuse(
        "first_sample", request.first_sample,
        from_to(0, kMaxSamples - request.n) + ": with n at most " + std::to_string(kMaxSamples));
  }
  if (request.max_new_tokens < 0 || request.max_new_tokens > context - prompt_size) {
    return refuse("max_new_tokens", request.max_new_tokens,
                  from_to(1, context - prompt_size) +
                      ", or 0 for all that the context leaves: prompt and new tokens share " +
                      std::to_string(context) + " positions");
  }
  if (request.priority < -kMaxPriority || request.priority > kMaxPriority) {
    return refuse("priority", request.priority, from_to(-kMaxPriority, kMaxPriority));
  }
  EXACT_RETURN_IF_ERROR(validate(request.sampling, config.vocabulary));
  EXACT_RETURN_IF_ERROR(check_stops(request, config.vocabulary));
  const int64_t new_tokens = effective_max_new_tokens(request, limits);
  EXACT_RETURN_IF_ERROR(check_new_tokens(request, config.vocabulary, new_tokens));
  EXACT_RETURN_IF_ERROR(check_report(request, config.vocabulary, new_tokens));
  return check_tokens_left(request, request.stop_ids, config.vocabulary);
}

Status validate(const ScoreRequest& request, const ModelConfig& config,
                const EngineLimits& limits) {
  const auto size = static_cast<int64_t>(request.tokens.size());
  if (size < kMinScoredTokens || size > limits.max_context) {
    return refuse("the length of tokens", size,
                  from_to(kMinScoredTokens, limits.max_context) +
                      ": every token but the first gets a log-probability");
  }
  if (request.priority < -kMaxPriority || request.priority > kMaxPriority) {
    return refuse("priority", request.priority, from_to(-kMaxPriority, kMaxPriority));
  }
  return check_ids("tokens", request.tokens, config.vocabulary);
}

int32_t effective_max_new_tokens(const GenerateRequest& request, const EngineLimits& limits) {
  const auto left = limits.max_context - static_cast<int32_t>(request.prompt.size());
  return request.max_new_tokens == 0 ? left : std::min(request.max_new_tokens, left);
}

int64_t kept_ids_limit(const GenerateRequest& request) {
  return kMaxKeptIds / request.n;
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
  out.min_p = params.min_p;
  return out;
}

}  // namespace exact
