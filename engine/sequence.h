// sequence.h owns the state of one sequence in the engine: one sample of a request, or one text to
// score.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"

namespace exact {

struct Sequence {
  SequenceId id;
  RequestId request;
  bool is_score = false;
  int32_t sample_index = 0;
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;
  int32_t max_new_tokens = 0;

  std::vector<int32_t> tokens;  // prompt, then generated; or the text to score
  int32_t prompt_size = 0;
  int32_t computed = 0;  // positions whose keys and values are in the cache
  bool started = false;  // has run a step: it has a place in a pending update's `wait`

  std::vector<float> logprobs, processed_logprobs;
  std::vector<VersionSpan> versions;

  // Positions to compute. The last token of a text to score predicts nothing.
  int32_t known() const { return static_cast<int32_t>(tokens.size()) - (is_score ? 1 : 0); }
  int32_t generated() const { return static_cast<int32_t>(tokens.size()) - prompt_size; }
  void forget_kv() { computed = 0; }
};

}  // namespace exact
