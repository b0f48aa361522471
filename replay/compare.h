// compare.h owns the comparison of what was made again with what was recorded: bits, no tolerance.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "kernels/base/digest.h"
#include "replay/plan.h"

namespace exact::replay {

// The first place where a piece differs from its record. Values are the 32 bits of an id or float.
struct Difference {
  std::string field;  // "tokens", "logprobs", ...: as in the record
  int32_t token = 0;  // index of the generated token (or, for prompt_logprobs, of the value)
  uint32_t recorded = 0, replayed = 0;
  bool is_float = false;
  std::string note;  // where the two values don't say it: a length, a finish reason, an error
};

// Tokens in order, and of each token its id, log-probabilities and reports in this order.
std::optional<Difference> first_difference(const RecordedSample& sample, const Piece& piece,
                                           const SampleResult& replayed);

// "token 3: logprobs recorded 0xbf800000 (-1) replayed 0xbf800001 (-1.0000001), 1 ulps"
std::string describe(const Difference& difference);

// Floats between the two, counted over the ordered floats; both zeros are one.
int64_t ulps_between(uint32_t a, uint32_t b);

// Adds tokens [begin, end) with all that is reported of them: equal bits, equal digest.
void add_recorded(DigestStream& digest, const RecordedSample& sample, const Piece& piece);
void add_replayed(DigestStream& digest, const RecordedSample& sample, const Piece& piece,
                  const SampleResult& replayed);

}  // namespace exact::replay
