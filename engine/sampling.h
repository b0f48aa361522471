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
inline constexpr float kMinRepetitionPenalty = 0.01f;
inline constexpr float kMaxRepetitionPenalty = 100.0f;
inline constexpr float kMaxPenalty = 100.0f;  // presence and frequency: of either sign
inline constexpr float kMaxLogitBias = 1000.0f;
inline constexpr int32_t kMaxLogitBiases = 1024;
inline constexpr int32_t kMaxStopSequences = 64;
inline constexpr int32_t kMaxStopSequenceIds = 32;  // of one sequence
inline constexpr int32_t kMaxPriority = 1000;       // of either sign
// Ids of the kept sets of all samples of a request: 64 MiB of a reply.
inline constexpr int64_t kMaxKeptIds = int64_t{1} << 24;

// `limits` are those of a made engine: Engine::limits(), its defaults filled in. All: invalid.
Status validate(const SamplingParams& params, int32_t vocabulary);
Status validate(const GenerateRequest& request, const ModelConfig& config,
                const EngineLimits& limits);
Status validate(const ScoreRequest& request, const ModelConfig& config, const EngineLimits& limits);

// How many tokens a valid request may generate: max_new_tokens, or with 0 what the context leaves.
int32_t effective_max_new_tokens(const GenerateRequest& request, const EngineLimits& limits);

// How many ids the kept sets of one sample may hold together, of a request that reports them. What
// top-k and masks allow a valid request to reach is less; where top-p or min-p decide, a sample
// that reaches it ends with an error: a kept set is never cut.
int64_t kept_ids_limit(const GenerateRequest& request);

// What the backend draws with, for the token at absolute `position`, from row `row` of the logits.
// A top_k of the vocabulary's size or more keeps every token, as 0 does.
SampleRow sample_row(const SamplingParams& params, uint32_t sample_index, int32_t position,
                     int64_t row);

}  // namespace exact
