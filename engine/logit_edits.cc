#include "engine/logit_edits.h"

#include <algorithm>
#include <string>

#include "kernels/base/check.h"
#include "kernels/contract/logit_edits.h"

namespace exact {
namespace {

bool has_bit(std::span<const uint32_t> mask, int32_t token) {
  return mask.empty() || contract::is_allowed(mask.data(), token);
}
void set_bit(std::vector<uint32_t>& mask, int32_t token) {
  mask[static_cast<size_t>(token / 32)] |= 1u << (token % 32);
}
void clear_bit(std::vector<uint32_t>& mask, int32_t token) {
  mask[static_cast<size_t>(token / 32)] &= ~(1u << (token % 32));
}

std::vector<uint32_t> full_mask(int32_t vocabulary) {
  std::vector<uint32_t> mask(static_cast<size_t>(contract::mask_words(vocabulary)), ~0u);
  if (vocabulary % 32 != 0) mask.back() = (1u << (vocabulary % 32)) - 1u;
  return mask;
}

// allowed_ids without banned_ids; empty when that is every id and nothing will be held back.
std::vector<uint32_t> request_mask(const GenerateRequest& request, int32_t vocabulary) {
  const SamplingParams& sampling = request.sampling;
  if (sampling.allowed_ids.empty() && sampling.banned_ids.empty() && request.min_new_tokens == 0) {
    return {};
  }
  std::vector<uint32_t> mask = full_mask(vocabulary);
  if (!sampling.allowed_ids.empty()) {
    std::fill(mask.begin(), mask.end(), 0u);
    for (const int32_t id : sampling.allowed_ids) set_bit(mask, id);
  }
  for (const int32_t id : sampling.banned_ids) clear_bit(mask, id);
  return mask;
}

}  // namespace

Status check_tokens_left(const GenerateRequest& request, std::span<const int32_t> stop_ids,
                         int32_t vocabulary) {
  std::vector<uint32_t> mask = request_mask(request, vocabulary);
  const auto some = [&mask] {
    return mask.empty() ||
           std::any_of(mask.begin(), mask.end(), [](uint32_t word) { return word != 0; });
  };
  if (!some()) {
    return Status(Code::invalid,
                  "banned_ids holds every id that may be drawn: leave at least one token");
  }
  if (request.min_new_tokens == 0) return {};
  for (const int32_t id : stop_ids) clear_bit(mask, id);
  if (some()) return {};
  return Status(Code::invalid,
                "before min_new_tokens no stop id is drawn, and every id that may be drawn is one: "
                "leave at least one other token in allowed_ids, or set min_new_tokens to 0");
}

LogitEdits::LogitEdits(const GenerateRequest& request, std::span<const int32_t> stop_ids,
                       int32_t vocabulary, int32_t max_new_tokens)
    : repetition_penalty_(request.sampling.repetition_penalty),
      presence_penalty_(request.sampling.presence_penalty),
      frequency_penalty_(request.sampling.frequency_penalty),
      counts_(repetition_penalty_ != 1.0f || presence_penalty_ != 0.0f ||
              frequency_penalty_ != 0.0f),
      vocabulary_(vocabulary),
      min_new_tokens_(request.min_new_tokens),
      allowed_(request_mask(request, vocabulary)) {
  if (min_new_tokens_ > 0) {
    held_back_.reserve(stop_ids.size());
    for (const int32_t id : stop_ids) {
      if (!has_bit(allowed_, id)) continue;
      held_back_.push_back(id);
      clear_bit(allowed_, id);
    }
  }
  if (request.masked) step_allowed_.resize(static_cast<size_t>(contract::mask_words(vocabulary)));
  for (const TokenBias& bias : request.sampling.logit_bias) {
    edits_.push_back({.token = bias.token, .bias = bias.bias});
  }
  if (repetition_penalty_ != 1.0f) {
    for (const int32_t token : request.prompt) edits_.push_back({.token = token, .seen = true});
  }
  // One edit a token, with what was said of it.
  std::sort(edits_.begin(), edits_.end(),
            [](const LogitEdit& a, const LogitEdit& b) { return a.token < b.token; });
  size_t kept = 0;
  for (const LogitEdit& edit : edits_) {
    if (kept == 0 || edits_[kept - 1].token != edit.token) {
      edits_[kept++] = edit;
      continue;
    }
    edits_[kept - 1].seen = edits_[kept - 1].seen || edit.seen;
    edits_[kept - 1].bias += edit.bias;  // a bias a token at most: one of the two is 0
  }
  edits_.resize(kept);
  if (!counts_) return;
  const size_t most = kept + static_cast<size_t>(max_new_tokens);
  edits_.reserve(std::min(most, static_cast<size_t>(vocabulary)));
}

LogitEdit& LogitEdits::edit_of(int32_t token) {
  const auto place =
      std::lower_bound(edits_.begin(), edits_.end(), token,
                       [](const LogitEdit& edit, int32_t id) { return edit.token < id; });
  if (place != edits_.end() && place->token == token) return *place;
  return *edits_.insert(place, {.token = token});
}

void LogitEdits::add(int32_t token) {
  EXACT_CHECK(token >= 0 && token < vocabulary_, "a token of the vocabulary");
  has_step_ids_ = false;
  if (++generated_ == min_new_tokens_) {
    for (const int32_t id : held_back_) set_bit(allowed_, id);
  }
  if (!counts_) return;
  LogitEdit& edit = edit_of(token);
  edit.count++;
  edit.seen = true;
}

Status LogitEdits::allow(std::span<const int32_t> ids) {
  if (ids.empty()) return Status(Code::invalid, "ids is empty: allow at least one token");
  bool some = false;
  for (size_t i = 0; i < ids.size(); i++) {
    if (ids[i] < 0 || ids[i] >= vocabulary_) {
      return Status(Code::invalid, "ids[" + std::to_string(i) + "] is " + std::to_string(ids[i]) +
                                       "; it must be from 0 to " + std::to_string(vocabulary_ - 1) +
                                       ", an id of the vocabulary");
    }
    if (i > 0 && ids[i] <= ids[i - 1]) {
      return Status(Code::invalid, "ids[" + std::to_string(i) + "] is " + std::to_string(ids[i]) +
                                       " after " + std::to_string(ids[i - 1]) +
                                       ": ids ascend, each once");
    }
    some = some || has_bit(allowed_, ids[i]);
  }
  if (!some) {
    return Status(Code::invalid,
                  "no id of ids may be drawn: allowed_ids, banned_ids or min_new_tokens bans each");
  }
  step_allowed_.assign(static_cast<size_t>(contract::mask_words(vocabulary_)), 0u);
  for (const int32_t id : ids) {
    if (has_bit(allowed_, id)) set_bit(step_allowed_, id);
  }
  has_step_ids_ = true;
  return {};
}

void LogitEdits::fill(SampleDetail& detail) const {
  detail.repetition_penalty = repetition_penalty_;
  detail.presence_penalty = presence_penalty_;
  detail.frequency_penalty = frequency_penalty_;
  detail.edits = edits();
  detail.allowed = allowed();
}

}  // namespace exact
