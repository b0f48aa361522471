#include "trainer_bridge/rollout_check.h"

#include <algorithm>
#include <span>
#include <string>

#include "engine/engine.h"

namespace exact::bridge {
namespace {

Status broken(const ipc::Completion& completion, const std::string& what) {
  return Status(Code::corrupt, "sample " + std::to_string(completion.sample_index) + " " + what);
}

Status check_count(const ipc::Completion& completion, const char* field, size_t count,
                   size_t wanted) {
  if (count == wanted) return {};
  return broken(completion, "has " + std::to_string(count) + " " + field + " where " +
                                std::to_string(wanted) + " belong");
}

Status check_counts(const ipc::Generate& request, const ipc::Completion& completion) {
  const size_t tokens = completion.tokens.size();
  const auto top = static_cast<size_t>(std::max(request.top_logprobs, 0));
  const auto count = [&](const char* field, size_t count, size_t wanted) {
    return check_count(completion, field, count, wanted);
  };
  EXACT_RETURN_IF_ERROR(count("logprobs", completion.logprobs.size(), tokens));
  EXACT_RETURN_IF_ERROR(count("processed_logprobs", completion.processed_logprobs.size(), tokens));
  EXACT_RETURN_IF_ERROR(
      count("entropies", completion.entropies.size(), request.entropy ? tokens : 0));
  EXACT_RETURN_IF_ERROR(count("top_ids", completion.top_ids.size(), tokens * top));
  EXACT_RETURN_IF_ERROR(count("top_logprobs", completion.top_logprobs.size(), tokens * top));
  EXACT_RETURN_IF_ERROR(
      count("kept_counts", completion.kept_counts.size(), request.kept_set ? tokens : 0));
  const size_t of_prompt = completion.prompt_logprobs.size();
  if (of_prompt == 0 && tokens == 0) return {};  // it ended before its prompt was computed
  return count("prompt_logprobs", of_prompt,
               request.prompt_logprobs ? request.prompt.size() - 1 : 0);
}

Status check_spans(const ipc::Completion& completion) {
  const auto tokens = static_cast<int64_t>(completion.tokens.size());
  if (completion.versions.empty() != (tokens == 0)) {
    return broken(completion, "has tokens and no version, or a version and no tokens");
  }
  int64_t previous = -1;
  for (const ipc::VersionSpan& span : completion.versions) {
    if (span.begin <= previous || span.begin >= tokens || (previous < 0 && span.begin != 0)) {
      return broken(completion, "has version spans that do not ascend through its tokens");
    }
    previous = span.begin;
  }
  return {};
}

Status check_top(const ipc::Generate& request, const ipc::Completion& completion) {
  const auto top = static_cast<size_t>(std::max(request.top_logprobs, 0));
  for (size_t i = 1; i < completion.top_logprobs.size(); i++) {
    if (i % top == 0) continue;
    const float before = completion.top_logprobs[i - 1], here = completion.top_logprobs[i];
    if (before >= here) continue;
    return broken(completion,
                  "has top_logprobs of token " + std::to_string(i / top) + " that do not descend");
  }
  return {};
}

// Each kept set ascends, and what was drawn is in it; a forced token need not be.
Status check_kept(const ipc::Generate& request, const ipc::Completion& completion) {
  size_t begin = 0;
  for (size_t i = 0; i < completion.kept_counts.size(); i++) {
    const int32_t count = completion.kept_counts[i];
    const size_t left = completion.kept_ids.size() - begin;
    if (count < 1 || static_cast<size_t>(count) > left) {
      return broken(completion, "has a kept_counts of " + std::to_string(count) + " at token " +
                                    std::to_string(i));
    }
    const auto kept = std::span(completion.kept_ids).subspan(begin, static_cast<size_t>(count));
    if (std::adjacent_find(kept.begin(), kept.end(), std::greater_equal<>()) != kept.end()) {
      return broken(completion, "has kept_ids that do not ascend at token " + std::to_string(i));
    }
    if (i >= request.forced_ids.size() &&
        !std::binary_search(kept.begin(), kept.end(), completion.tokens[i])) {
      return broken(completion,
                    "drew a token that its kept set does not hold, token " + std::to_string(i));
    }
    begin += static_cast<size_t>(count);
  }
  return check_count(completion, "kept_ids", completion.kept_ids.size(), begin);
}

}  // namespace

Status check_completion(const ipc::Generate& request, const ipc::Completion& completion) {
  if (completion.sample_index < 0 || completion.sample_index >= request.n) {
    return broken(completion, "is none of the " + std::to_string(request.n) + " asked for");
  }
  if (completion.finish_reason > static_cast<uint8_t>(FinishReason::deadline)) {
    return broken(completion,
                  "ended for the unknown reason " + std::to_string(completion.finish_reason));
  }
  const size_t tokens = completion.tokens.size();
  if (request.max_new_tokens > 0 && tokens > static_cast<size_t>(request.max_new_tokens)) {
    return broken(completion, "has more tokens than max_new_tokens");
  }
  const size_t forced = std::min(tokens, request.forced_ids.size());
  if (!std::equal(completion.tokens.begin(),
                  completion.tokens.begin() + static_cast<ptrdiff_t>(forced),
                  request.forced_ids.begin())) {
    return broken(completion, "does not begin with forced_ids");
  }
  EXACT_RETURN_IF_ERROR(check_counts(request, completion));
  EXACT_RETURN_IF_ERROR(check_spans(completion));
  EXACT_RETURN_IF_ERROR(check_top(request, completion));
  return check_kept(request, completion);
}

Status check_rollout(const ipc::Generate& request, const ipc::GenerateReply& reply) {
  if (reply.seed != request.seed) {
    return Status(Code::corrupt, "the reply has the seed " + std::to_string(reply.seed) +
                                     ", the request " + std::to_string(request.seed));
  }
  if (reply.completions.size() != static_cast<size_t>(std::max(request.n, 0))) {
    return Status(Code::corrupt, "the reply has " + std::to_string(reply.completions.size()) +
                                     " completions, the request asks for " +
                                     std::to_string(request.n));
  }
  for (size_t i = 0; i < reply.completions.size(); i++) {
    const ipc::Completion& completion = reply.completions[i];
    if (completion.sample_index != static_cast<int32_t>(i)) {
      return broken(completion, "is at the place of sample " + std::to_string(i));
    }
    EXACT_RETURN_IF_ERROR(check_completion(request, completion));
  }
  return {};
}

}  // namespace exact::bridge
