// plan.h owns what of a journal can be made again, and as which requests. Pure: no engine runs.
//
// Each span of a sample that one version of the weights made is a piece: a request with the tokens
// before the span forced, and the rest free. A draw is a function of seed, sample index, position
// and logits, so a piece ends in the same bits as the sample did, and needs one version alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "journal/record.h"
#include "kernels/base/result.h"

namespace exact::replay {

// A completion of a journal, with what the records around it say of it.
struct RecordedSample {
  uint64_t record_id = 0;
  std::string contract_id;  // of its session
  int32_t max_context = 0;  // of its session
  journal::CompletionRecord record;
  // By span after the first: the policy of the update that brought it (exact::UpdatePolicy), or
  // kUnknownPolicy where the journal does not hold that update.
  std::vector<uint8_t> policies;
};
inline constexpr uint8_t kUnknownPolicy = 255;

// The completions of a journal (a directory or one segment), in its order, and what else was met.
struct RecordedRun {
  std::vector<RecordedSample> samples;
  uint64_t updates = 0, scores = 0;
  uint64_t dropped = 0;             // records that the worker left out and counted
  std::vector<std::string> damage;  // a sentence each: records were lost
  std::string torn_tail;            // a sentence, where the writer was killed within a record
};
// not_found, device: of JournalReader::open. Damage is told of in the run.
Result<RecordedRun> read_run(const std::string& path, uint64_t first_id, uint64_t last_id);

struct Piece {
  size_t sample = 0;           // index into the samples that were planned
  Digest128 weights;           // that must be live
  int32_t begin = 0, end = 0;  // tokens of the sample that this makes
  bool is_last = false;        // its end is the sample's
  bool has_prompt = false;     // the prompt's log-probabilities are of these weights
  GenerateRequest request;     // n = 1; id not set
};

struct Skipped {
  size_t sample = 0;
  int32_t begin = 0;  // tokens from here on are not made again
  std::string why;
};

struct Plan {
  std::vector<Piece> pieces;  // by sample, then by begin
  std::vector<Skipped> skipped;
  int64_t token_count = 0;  // that the pieces make
};

// A record that contradicts itself is skipped with the reason, never believed.
Plan make_plan(std::span<const RecordedSample> samples);

// The ids that token `index` of a masked sample could be; empty where the record has none.
std::span<const int32_t> mask_of(const journal::CompletionRecord& record, int32_t index);

}  // namespace exact::replay
