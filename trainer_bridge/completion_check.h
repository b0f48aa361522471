// completion_check.h owns the comparison that the project exists for: the log-probabilities that a
// worker sent against the trainer's own forward pass, bit for bit, each token under the weights of
// the version that made it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ipc/messages.h"
#include "kernels/base/result.h"
#include "trainer_bridge/scorer.h"

namespace exact::bridge {

// A version that the trainer published, and the trainer's own copy of it.
struct ScoredVersion {
  uint64_t weight_version = 0;
  Scorer* scorer = nullptr;  // holds the weights of exactly this version
};

struct BitDifference {
  int32_t sample_index = 0;
  int32_t token_index = 0;  // of the generated tokens
  uint64_t weight_version = 0;
  uint32_t worker_bits = 0, trainer_bits = 0;
  std::string to_string() const;  // both values in hex and decimal
};

struct CompletionCheck {
  uint64_t logprobs_checked = 0;
  uint64_t mismatches = 0;
  std::optional<BitDifference> first_difference;
};

// Scores prompt + tokens of every completion under every version that it names and compares. A
// difference is a count, not an error. contract_mismatch: another contract id; corrupt: a version
// that is not among `versions`, a digest that is not its scorer's, spans or lengths that contradict
// each other, or a completion that ended with an error.
Result<CompletionCheck> check_completions(std::span<const int32_t> prompt,
                                          const ipc::GenerateReply& reply,
                                          std::span<const ScoredVersion> versions);

}  // namespace exact::bridge
