// rich_requests.h owns random requests with every feature that rollouts may ask for, of a model so
// small that thousands of them take seconds, and masks that are a function of what they are for.
#pragma once

#include <string>

#include "engine/engine.h"
#include "tests/support/random_data.h"

namespace exact {

// One layer, width 32, a vocabulary of 40, two ids that end a text.
ModelConfig rich_config();

// Limits under which sequences are preempted, swapped and evicted all the time.
EngineLimits starved_limits(RandomData& random);

GenerateRequest rich_generate(RandomData& random, const ModelConfig& config,
                              const EngineLimits& limits, RequestId id);
ScoreRequest rich_score(RandomData& random, const ModelConfig& config, const EngineLimits& limits,
                        RequestId id);

// Answers with ids that depend on request, sample and index alone.
void answer_mask(Engine& engine, const MaskWanted& mask);

// Every field that changes a result, for a failure's message.
std::string describe_rich(const GenerateRequest& request);

}  // namespace exact
