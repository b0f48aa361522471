#include "worker/convert.h"

#include <algorithm>
#include <utility>

#include "engine/sampling.h"
#include "replay/request.h"

namespace exact::worker {
namespace {

// Ids of the largest kept set that one token can have.
uint64_t most_kept(const SamplingParams& sampling, int32_t vocabulary) {
  if (sampling.temperature == 0.0f) return 1;
  auto kept = static_cast<uint64_t>(vocabulary);
  if (sampling.top_k > 0) kept = std::min(kept, static_cast<uint64_t>(sampling.top_k));
  const uint64_t allowed = sampling.allowed_ids.size();
  return allowed > 0 ? std::min(kept, allowed) : kept;
}

}  // namespace

GenerateRequest to_request(RequestId id, const ipc::Generate& message) {
  GenerateRequest request = replay::request_of(message);
  request.id = id;
  request.n = message.n;
  request.priority = message.priority;
  request.stream = message.reply_mode == static_cast<uint8_t>(ipc::ReplyMode::tokens);
  return request;
}

ipc::Completion to_completion(SampleResult result) {
  ipc::Completion completion;
  completion.sample_index = result.sample_index;
  completion.finish_reason = static_cast<uint8_t>(result.reason);
  if (!result.error.is_ok()) completion.error = result.error.message();
  completion.tokens = std::move(result.tokens);
  completion.logprobs = std::move(result.logprobs);
  completion.processed_logprobs = std::move(result.processed_logprobs);
  for (const VersionSpan& span : result.versions) {
    completion.versions.push_back(
        {span.begin, span.version.value, span.weights_digest.to_hex(), span.kv_rebuilt});
  }
  completion.entropies = std::move(result.entropies);
  completion.top_ids = std::move(result.top_ids);
  completion.top_logprobs = std::move(result.top_logprobs);
  completion.kept_counts = std::move(result.kept_counts);
  completion.kept_ids = std::move(result.kept_ids);
  completion.prompt_logprobs = std::move(result.prompt_logprobs);
  return completion;
}

ipc::TokenChunk to_chunk(SampleProgress progress) {
  return {progress.sample_index, progress.begin, std::move(progress.tokens),
          std::move(progress.logprobs), std::move(progress.processed_logprobs)};
}

ipc::ScoreReply to_reply(ScoreResult result, const Digest128& contract) {
  ipc::ScoreReply reply;
  reply.contract_id = contract.to_hex();
  reply.weight_version = result.version.value;
  reply.weights_digest = result.weights_digest.to_hex();
  reply.logprobs = std::move(result.logprobs);
  return reply;
}

uint64_t reply_bytes(const GenerateRequest& request, ipc::ReplyMode mode,
                     const EngineLimits& limits, int32_t vocabulary) {
  constexpr uint64_t kCompletionBytes = 640;  // names, counts, some versions
  uint64_t token_bytes = 4 + 4 + 4;           // id, raw and processed log-probability
  if (request.report.entropy) token_bytes += 4;
  token_bytes += uint64_t{8} * static_cast<uint64_t>(std::max(request.report.top_logprobs, 0));
  const auto tokens = static_cast<uint64_t>(effective_max_new_tokens(request, limits));
  if (request.report.kept_set) token_bytes += 4;
  uint64_t sample_bytes = kCompletionBytes + tokens * token_bytes;
  if (request.report.kept_set) {
    const uint64_t ids = tokens * most_kept(request.sampling, vocabulary);
    sample_bytes += 4 * std::min(ids, static_cast<uint64_t>(kept_ids_limit(request)));
  }
  if (request.report.prompt_logprobs) sample_bytes += 4 * request.prompt.size();
  const auto samples = mode == ipc::ReplyMode::whole ? static_cast<uint64_t>(request.n) : 1;
  return kCompletionBytes + samples * sample_bytes;
}

}  // namespace exact::worker
