// sequence.h owns the state of one sequence in the engine: one sample of a request, or one text to
// score; and of the request that its samples share.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"
#include "engine/kv_cache.h"
#include "engine/logit_edits.h"
#include "engine/waiting_queue.h"

namespace exact {

enum class SequencePlace : uint8_t {
  unborn,   // a sample whose prompt another sample of its request computes
  parked,   // waits for the ids that may be drawn, without pages
  queued,   // could run, in the waiting queue
  running,  // in the batch; it may wait for its ids
  ended,    // its result is reported
};

// What each step asks comes first, with a copy of what it asks of the request: a step of a thousand
// sequences is bound by the memory it touches.
struct Sequence {
  SequenceId id;
  int32_t group = -1;
  int32_t computed = 0;  // positions whose keys and values are in `kv`, or in `swapped`
  int32_t priority = 0;
  int32_t prompt_size = 0;
  SequencePlace place = SequencePlace::unborn;
  bool started = false;     // has run a step: it has a place in a pending update's `wait`
  bool wants_mask = false;  // its next token waits for Engine::allow
  bool is_score = false;
  bool draws_plainly = false;  // no draw needs a SampleDetail
  bool ends_plainly = false;   // at its length alone, and nothing is streamed
  bool scores_text = false;    // its group has text_logprobs
  // What it holds was made by more than one version of the weights (UpdatePolicy::keep): it is
  // nobody else's to find.
  bool has_mixed_kv = false;
  bool lost_mixed_kv = false;   // since its last token
  std::vector<int32_t> tokens;  // prompt, then generated; or the text to score
  PageList kv;
  SampleRow draw;  // but for row, position and detail
  std::vector<float> logprobs, processed_logprobs;
  std::vector<VersionSpan> versions;

  int32_t sample_index = 0;
  uint64_t age = 0;              // of those that started: the lower, the older
  WaitingQueue::Place queue;     // while queued
  std::vector<int32_t> swapped;  // slots of the swap space, instead of pages
  LogitEdits edits;              // of the next token

  // What SampleResult reports beside these, under the same names. The step in hand may have made
  // room for one token more than there are.
  std::vector<float> entropies;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  std::vector<int32_t> kept_counts, kept_ids;
};

// What the samples of one request share. Sample 0 leads: it computes the prompt, and from its last
// row of logits all samples draw their first tokens.
struct SequenceGroup {
  RequestId request;
  bool is_score = false;
  bool forked = false;  // the samples go their own ways
  int32_t prompt_size = 0;
  int32_t max_new_tokens = 0;  // never 0

  std::vector<SequenceId> members;  // by sample index
  int32_t open_count = 0;           // members that have not ended
  int32_t masks_missing = 0;        // before the fork: members that want their first mask

  // Raw log-probabilities of the text after its first token: a score's result, or what
  // ReportParams::prompt_logprobs asks for. Rows [0, text_rows_done) are computed.
  std::vector<float> text_logprobs;
  int32_t text_rows_done = 0;
  int32_t text_rows() const { return static_cast<int32_t>(text_logprobs.size()); }

  std::vector<int32_t> stop_ids;  // with the config's own, unless they are ignored
  GenerateRequest params;         // of a score: priority and client alone; the prompt moved out
};

// Positions to compute. The last token of a text to score predicts nothing.
inline int32_t known_positions(const Sequence& sequence) {
  return static_cast<int32_t>(sequence.tokens.size()) - (sequence.is_score ? 1 : 0);
}

inline int32_t generated_count(const Sequence& sequence) {
  return static_cast<int32_t>(sequence.tokens.size()) - sequence.prompt_size;
}

// Positions whose rows need not be computed again when their keys and values are found: logits of
// the last known token are needed, and those of a text that is still to be scored.
inline int32_t reusable_positions(const Sequence& sequence, const SequenceGroup& group) {
  return group.text_rows_done < group.text_rows() ? group.text_rows_done
                                                  : known_positions(sequence) - 1;
}

}  // namespace exact
