// logit_edits.h owns what rule N9 does to one sample's logits before the temperature, as the sample
// grows: which tokens are penalised or biased, and which may be drawn next. It counts what it is
// told and allocates nothing after it is made. What the backend does with it: SampleDetail.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "kernels/backend.h"

namespace exact {

// Whether allowed_ids without banned_ids, and without `stop_ids` where min_new_tokens bans them,
// leave a token. stop_ids: all that end a sample, with the config's own. invalid: none is left.
Status check_tokens_left(const GenerateRequest& request, std::span<const int32_t> stop_ids,
                         int32_t vocabulary);

class LogitEdits {
 public:
  LogitEdits() = default;
  // Of a valid request; stop_ids as above. max_new_tokens: effective_max_new_tokens(), the most
  // that add() will be called.
  LogitEdits(const GenerateRequest& request, std::span<const int32_t> stop_ids, int32_t vocabulary,
             int32_t max_new_tokens);

  // The next token of the sample, drawn or forced. What allow() said is over with it.
  void add(int32_t token);
  // The ids that the next token may be, of those that the request leaves (Engine::allow). invalid:
  // none, not ascending, outside the vocabulary, or none that may be drawn; nothing changes then.
  Status allow(std::span<const int32_t> ids);
  // Whether allow() has been called since the last token.
  bool has_step_ids() const { return has_step_ids_; }

  // Whether the next row needs a SampleDetail for its edits.
  bool edits_anything() const { return !edits_.empty() || !allowed().empty(); }
  // Ascending token.
  std::span<const LogitEdit> edits() const { return edits_; }
  // SampleDetail::allowed; empty: all.
  std::span<const uint32_t> allowed() const { return has_step_ids_ ? step_allowed_ : allowed_; }
  // Penalties, edits and mask, valid until the next call that changes this.
  void fill(SampleDetail& detail) const;

 private:
  LogitEdit& edit_of(int32_t token);

  float repetition_penalty_ = 1.0f, presence_penalty_ = 0.0f, frequency_penalty_ = 0.0f;
  bool counts_ = false;  // whether a token of the output is penalised
  int32_t vocabulary_ = 0;
  int32_t min_new_tokens_ = 0;
  int32_t generated_ = 0;
  bool has_step_ids_ = false;
  std::vector<LogitEdit> edits_;
  std::vector<uint32_t> allowed_;       // empty: all
  std::vector<uint32_t> step_allowed_;  // of these, what allow() said
  std::vector<int32_t> held_back_;      // stop ids that are allowed from min_new_tokens on
};

}  // namespace exact
