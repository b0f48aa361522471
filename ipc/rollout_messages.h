// rollout_messages.h owns the messages of a rollout: what a client may ask for, what it is told
// while samples are made, and what it has at the end. docs/protocol.md gives the range of each
// field; a value outside it is refused by the field's name.
//
// -> client to worker, <- worker to client. Generate is answered by GenerateReply or ErrorReply,
// once. Before that, parts with its request_id may come: TokenChunk, SampleDone, MaskWanted.
#pragma once

#include <cereal/cereal.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/vector.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "ipc/message_type.h"

namespace exact::ipc {

// When a client hears of a rollout. The bits are the same in each.
enum class ReplyMode : uint8_t {
  whole = 0,    // one GenerateReply when the last sample is done
  samples = 1,  // a SampleDone for each sample when it is done, then an empty GenerateReply
  tokens = 2,   // TokenChunks as tokens are made, beside those
};

struct TokenBias {
  int32_t token = 0;
  float bias = 0;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(token), CEREAL_NVP(bias));
  }
};

struct StopSequence {
  std::vector<int32_t> ids;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(ids));
  }
};

struct Generate {  // ->
  static constexpr MessageType kType = MessageType::generate;
  std::vector<int32_t> prompt;
  int32_t n = 1;
  int32_t max_new_tokens = 0;  // 0: up to the context
  float temperature = 1.0f;    // 0: greedy
  int32_t top_k = 0;           // 0: off
  float top_p = 1.0f;          // 1: off
  uint64_t seed = 0;           // sample i draws with (seed, i)
  std::vector<int32_t> stop_ids;
  float min_p = 0.0f;               // 0: off
  float repetition_penalty = 1.0f;  // 1: off
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<TokenBias> logit_bias;
  std::vector<int32_t> allowed_ids;  // empty: all
  std::vector<int32_t> banned_ids;
  std::vector<StopSequence> stop_sequences;
  int32_t min_new_tokens = 0;
  bool ignore_eos = false;
  std::vector<int32_t> forced_ids;  // what every sample begins with
  int32_t top_logprobs = 0;         // 0: none
  bool entropy = false;
  bool kept_set = false;
  bool prompt_logprobs = false;
  int32_t priority = 0;     // higher ones first
  bool masked = false;      // each token waits for an Allow
  uint8_t reply_mode = 0;   // ReplyMode
  int32_t deadline_ms = 0;  // from its arrival, by the worker's clock; 0: none
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(prompt), CEREAL_NVP(n), CEREAL_NVP(max_new_tokens), CEREAL_NVP(temperature),
      CEREAL_NVP(top_k), CEREAL_NVP(top_p), CEREAL_NVP(seed), CEREAL_NVP(stop_ids),
      CEREAL_NVP(min_p), CEREAL_NVP(repetition_penalty), CEREAL_NVP(presence_penalty),
      CEREAL_NVP(frequency_penalty), CEREAL_NVP(logit_bias), CEREAL_NVP(allowed_ids),
      CEREAL_NVP(banned_ids), CEREAL_NVP(stop_sequences), CEREAL_NVP(min_new_tokens),
      CEREAL_NVP(ignore_eos), CEREAL_NVP(forced_ids), CEREAL_NVP(top_logprobs), CEREAL_NVP(entropy),
      CEREAL_NVP(kept_set), CEREAL_NVP(prompt_logprobs), CEREAL_NVP(priority), CEREAL_NVP(masked),
      CEREAL_NVP(reply_mode), CEREAL_NVP(deadline_ms));
  }
};

struct VersionSpan {
  int32_t begin = 0;  // index of the first token made by this version
  uint64_t weight_version = 0;
  std::string weights_digest;
  bool kv_rebuilt = false;  // keys and values of all positions before it were made anew by it
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(begin), CEREAL_NVP(weight_version), CEREAL_NVP(weights_digest),
      CEREAL_NVP(kv_rebuilt));
  }
};

struct Completion {
  int32_t sample_index = 0;
  uint8_t finish_reason = 0;  // exact::FinishReason
  std::string error;          // empty unless the reason is error or aborted
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;            // raw, exact bits
  std::vector<float> processed_logprobs;  // of the distribution that was drawn from
  std::vector<VersionSpan> versions;
  // What was asked for, else empty. Of token i: entropies[i]; the K = top_logprobs ids and values
  // from i * K; kept_counts[i] ids of kept_ids, after those of the tokens before it.
  std::vector<float> entropies;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  std::vector<int32_t> kept_counts;
  std::vector<int32_t> kept_ids;
  std::vector<float> prompt_logprobs;  // of each token of the prompt after the first
  uint64_t record_id = 0;              // in the worker's journal, from 1; 0: it keeps none
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(sample_index), CEREAL_NVP(finish_reason), CEREAL_NVP(error), CEREAL_NVP(tokens),
      CEREAL_NVP(logprobs), CEREAL_NVP(processed_logprobs), CEREAL_NVP(versions),
      CEREAL_NVP(entropies), CEREAL_NVP(top_ids), CEREAL_NVP(top_logprobs), CEREAL_NVP(kept_counts),
      CEREAL_NVP(kept_ids), CEREAL_NVP(prompt_logprobs), CEREAL_NVP(record_id));
  }
};

struct GenerateReply {  // <- when the last sample of the group is done
  static constexpr MessageType kType = MessageType::generate_reply;
  std::string contract_id;
  uint64_t seed = 0;
  std::vector<Completion> completions;  // by sample_index; empty where SampleDone had them
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(contract_id), CEREAL_NVP(seed), CEREAL_NVP(completions));
  }
};

struct SampleDone {  // <- a part: one sample is done; after all of its chunks
  static constexpr MessageType kType = MessageType::sample_done;
  std::string contract_id;
  Completion completion;  // whole, whatever came in chunks before
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(contract_id), CEREAL_NVP(completion));
  }
};

struct TokenChunk {  // <- a part: tokens [begin, begin + tokens) of one sample
  static constexpr MessageType kType = MessageType::token_chunk;
  int32_t sample_index = 0;
  int32_t begin = 0;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<float> processed_logprobs;
  // Appends the chunk that follows this one: as if both had come in one.
  void append(const TokenChunk& next) {
    tokens.insert(tokens.end(), next.tokens.begin(), next.tokens.end());
    logprobs.insert(logprobs.end(), next.logprobs.begin(), next.logprobs.end());
    processed_logprobs.insert(processed_logprobs.end(), next.processed_logprobs.begin(),
                              next.processed_logprobs.end());
  }
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(sample_index), CEREAL_NVP(begin), CEREAL_NVP(tokens), CEREAL_NVP(logprobs),
      CEREAL_NVP(processed_logprobs));
  }
};

struct MaskWanted {  // <- a part: a sample of a masked rollout waits for its Allow
  static constexpr MessageType kType = MessageType::mask_wanted;
  int32_t sample_index = 0;
  int32_t index = 0;            // of the token to come
  int32_t previous_token = -1;  // token index - 1; -1 at the first
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(sample_index), CEREAL_NVP(index), CEREAL_NVP(previous_token));
  }
};

struct Allow {  // -> the ids that token `index` may be
  static constexpr MessageType kType = MessageType::allow;
  uint64_t target_request_id = 0;  // of this client
  int32_t sample_index = 0;
  int32_t index = 0;
  std::vector<int32_t> ids;  // ascending, at least one
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(target_request_id), CEREAL_NVP(sample_index), CEREAL_NVP(index), CEREAL_NVP(ids));
  }
};

struct AllowReply {  // <- the sample goes on
  static constexpr MessageType kType = MessageType::allow_reply;
  template <class A>
  void serialize(A&) {}
};

struct Cancel {  // -> the cancelled request is answered too, with what it has
  static constexpr MessageType kType = MessageType::cancel;
  uint64_t target_request_id = 0;  // of this client
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(target_request_id));
  }
};

struct CancelReply {  // <-
  static constexpr MessageType kType = MessageType::cancel_reply;
  bool found = false;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(found));
  }
};

}  // namespace exact::ipc
