#include "worker/convert.h"

#include <algorithm>
#include <utility>

namespace exact::worker {

GenerateRequest to_request(RequestId id, ipc::Generate message) {
  GenerateRequest request;
  request.id = id;
  request.prompt = std::move(message.prompt);
  request.n = message.n;
  request.max_new_tokens = message.max_new_tokens;
  request.sampling.temperature = message.temperature;
  request.sampling.top_k = message.top_k;
  request.sampling.top_p = message.top_p;
  request.sampling.seed = message.seed;
  request.stop_ids = std::move(message.stop_ids);
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
    completion.versions.push_back({span.begin, span.version.value, span.weights_digest.to_hex()});
  }
  return completion;
}

ipc::ScoreReply to_reply(ScoreResult result, const Digest128& contract) {
  ipc::ScoreReply reply;
  reply.contract_id = contract.to_hex();
  reply.weight_version = result.version.value;
  reply.weights_digest = result.weights_digest.to_hex();
  reply.logprobs = std::move(result.logprobs);
  return reply;
}

uint64_t reply_bytes(const ipc::Generate& message, int32_t max_context) {
  constexpr uint64_t kTokenBytes = 4 + 4 + 4;  // id, raw and processed log-probability
  constexpr uint64_t kCompletionBytes = 512;   // names, counts, one version
  const int32_t wanted = message.max_new_tokens > 0 ? message.max_new_tokens : max_context;
  const auto tokens = static_cast<uint64_t>(std::min(wanted, max_context));
  const auto samples = static_cast<uint64_t>(std::max(message.n, 0));
  return kCompletionBytes + samples * (kCompletionBytes + tokens * kTokenBytes);
}

}  // namespace exact::worker
