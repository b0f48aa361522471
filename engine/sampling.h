// sampling.h owns what a request may ask for: the range of every field, and how a sample's
// parameters become a row for the backend. A bad value is refused here, before anything is queued,
// in a sentence that names the field and its range.
#pragma once

#include <cstdint>

#include "engine/config.h"
#include "engine/engine.h"
#include "kernels/backend.h"

namespace exact {

inline constexpr float kMaxTemperature = 100.0f;
// Below this a logit divided by the temperature could overflow; 0 itself is greedy.
inline constexpr float kMinTemperature = 1e-4f;
inline constexpr int32_t kMaxSamples = 1024;    // n of one request
inline constexpr int32_t kMaxStopIds = 256;     // of one request
inline constexpr int32_t kMinScoredTokens = 2;  // the first one has no log-probability

// `limits` are those of a made engine: Engine::limits(), its defaults filled in. All: invalid.
Status validate(const SamplingParams& params);
Status validate(const GenerateRequest& request, const ModelConfig& config,
                const EngineLimits& limits);
Status validate(const ScoreRequest& request, const ModelConfig& config, const EngineLimits& limits);

// How many tokens a valid request may generate: max_new_tokens, or with 0 what the context leaves.
int32_t effective_max_new_tokens(const GenerateRequest& request, const EngineLimits& limits);

// What the backend draws with, for the token at absolute `position`, from row `row` of the logits.
// A top_k of the vocabulary's size or more keeps every token, as 0 does.
SampleRow sample_row(const SamplingParams& params, uint32_t sample_index, int32_t position,
                     int64_t row);

}  // namespace exact
