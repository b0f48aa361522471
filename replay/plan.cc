#include "replay/plan.h"

#include <algorithm>
#include <utility>

#include "engine/sampling.h"
#include "replay/request.h"

namespace exact::replay {
namespace {

using ipc::Completion;

int32_t count_of(const Completion& completion) {
  return static_cast<int32_t>(completion.tokens.size());
}

// The sum of counts that are all at least 0; -1 where one is not.
int64_t sum_of(std::span<const int32_t> counts) {
  int64_t sum = 0;
  for (const int32_t count : counts) {
    if (count < 0) return -1;
    sum += count;
  }
  return sum;
}

// Empty where every list of the record has the length that its request and tokens give it.
std::string contradiction(const RecordedSample& sample) {
  const journal::CompletionRecord& record = sample.record;
  const Completion& made = record.completion;
  const ipc::Generate& asked = record.request;
  const size_t tokens = made.tokens.size();
  if (made.sample_index < 0 || made.sample_index >= kMaxSamples) return "sample_index";
  if (sample.max_context < 0) return "max_context of its session";
  if (asked.top_logprobs < 0) return "top_logprobs of the request";
  const auto top = tokens * static_cast<size_t>(asked.top_logprobs);
  const auto has = [](size_t size, bool wanted, size_t want) {
    return size == (wanted ? want : 0);
  };
  if (made.logprobs.size() != tokens) return "logprobs";
  if (made.processed_logprobs.size() != tokens) return "processed_logprobs";
  if (!has(made.entropies.size(), asked.entropy, tokens)) return "entropies";
  if (made.top_ids.size() != top || made.top_logprobs.size() != top) return "top_logprobs";
  if (!has(made.kept_counts.size(), asked.kept_set, tokens)) return "kept_counts";
  if (sum_of(made.kept_counts) != std::ssize(made.kept_ids)) return "kept_ids";
  if (!made.prompt_logprobs.empty() && made.prompt_logprobs.size() + 1 != asked.prompt.size()) {
    return "prompt_logprobs";
  }
  if (sum_of(record.mask_counts) != std::ssize(record.mask_ids)) return "mask_counts";
  if (tokens > 0 && (made.versions.empty() || made.versions.front().begin != 0)) return "versions";
  for (size_t i = 0; i < made.versions.size(); i++) {
    const int32_t begin = made.versions[i].begin;
    const bool ascends = i == 0 || begin > made.versions[i - 1].begin;
    if (!ascends || begin >= count_of(made)) return "versions";
    if (!Digest128::from_hex(made.versions[i].weights_digest)) return "weights_digest";
  }
  return "";
}

// Why tokens from span `i` on can't be made from tokens and weights alone; empty: they can.
std::string why_not_across(const RecordedSample& sample, size_t i) {
  const uint8_t policy = sample.policies[i - 1];
  if (policy <= static_cast<uint8_t>(UpdatePolicy::abort)) return "";
  const std::string version = std::to_string(sample.record.completion.versions[i].weight_version);
  if (policy == kUnknownPolicy) {
    return "the journal does not hold the update to version " + version +
           ", so nobody knows whether keys and values of the old weights were kept";
  }
  return "the update to version " + version + " has policy " + std::to_string(policy) +
         ", under which keys and values of the old weights go on";
}

Piece piece_of(const RecordedSample& sample, size_t index, size_t span) {
  const Completion& made = sample.record.completion;
  Piece piece;
  piece.sample = index;
  piece.weights = *Digest128::from_hex(made.versions[span].weights_digest);
  piece.begin = made.versions[span].begin;
  piece.is_last = span + 1 == made.versions.size();
  piece.has_prompt = span == 0;
  piece.end = piece.is_last ? count_of(made) : made.versions[span + 1].begin;
  GenerateRequest& request = piece.request;
  request = request_of(sample.record.request);
  request.first_sample = made.sample_index;
  // What may follow the recorded tokens is one more: a stop that does not come again is seen.
  const auto left = sample.max_context - static_cast<int32_t>(request.prompt.size());
  const int32_t most =
      request.max_new_tokens == 0 ? std::max(left, piece.end) : request.max_new_tokens;
  const bool stopped = made.finish_reason == static_cast<uint8_t>(FinishReason::stop);
  request.max_new_tokens = piece.is_last && stopped ? std::min(most, piece.end + 1) : piece.end;
  request.min_new_tokens = std::min(request.min_new_tokens, request.max_new_tokens);
  const auto begin = static_cast<size_t>(piece.begin);
  if (request.forced_ids.size() < begin) {
    request.forced_ids.assign(made.tokens.begin(), made.tokens.begin() + piece.begin);
  }
  const auto end = static_cast<size_t>(request.max_new_tokens);
  if (request.forced_ids.size() > end) request.forced_ids.resize(end);
  request.report.prompt_logprobs = piece.has_prompt && !made.prompt_logprobs.empty();
  return piece;
}

void plan_sample(const RecordedSample& sample, size_t index, Plan& plan) {
  const journal::CompletionRecord& record = sample.record;
  const auto skip = [&](int32_t begin, std::string why) {
    plan.skipped.push_back({index, begin, std::move(why)});
  };
  if (const std::string field = contradiction(sample); !field.empty()) {
    return skip(0, "the record contradicts itself: " + field);
  }
  if (!record.not_replayable.empty()) return skip(0, record.not_replayable);
  if (record.completion.tokens.empty()) return skip(0, "it ended before its first token");
  if (record.request.masked && std::ssize(record.mask_counts) < count_of(record.completion)) {
    return skip(0, "the record does not hold the masks of all tokens");
  }
  for (size_t i = 0; i < record.completion.versions.size(); i++) {
    if (i > 0) {
      if (std::string why = why_not_across(sample, i); !why.empty()) {
        return skip(record.completion.versions[i].begin, std::move(why));
      }
    }
    plan.pieces.push_back(piece_of(sample, index, i));
    plan.token_count += plan.pieces.back().end - plan.pieces.back().begin;
  }
}

}  // namespace

Plan make_plan(std::span<const RecordedSample> samples) {
  Plan plan;
  for (size_t i = 0; i < samples.size(); i++) plan_sample(samples[i], i, plan);
  return plan;
}

std::span<const int32_t> mask_of(const journal::CompletionRecord& record, int32_t index) {
  if (index < 0 || index >= std::ssize(record.mask_counts)) return {};
  size_t begin = 0;
  for (int32_t i = 0; i < index; i++) {
    begin += static_cast<size_t>(record.mask_counts[static_cast<size_t>(i)]);
  }
  const auto count = static_cast<size_t>(record.mask_counts[static_cast<size_t>(index)]);
  return std::span(record.mask_ids).subspan(begin, count);
}

}  // namespace exact::replay
