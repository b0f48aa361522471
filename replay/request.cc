#include "replay/request.h"

namespace exact::replay {

GenerateRequest request_of(const ipc::Generate& message) {
  GenerateRequest request;
  request.prompt = message.prompt;
  request.max_new_tokens = message.max_new_tokens;
  SamplingParams& sampling = request.sampling;
  sampling.temperature = message.temperature;
  sampling.top_k = message.top_k;
  sampling.top_p = message.top_p;
  sampling.seed = message.seed;
  sampling.min_p = message.min_p;
  sampling.repetition_penalty = message.repetition_penalty;
  sampling.presence_penalty = message.presence_penalty;
  sampling.frequency_penalty = message.frequency_penalty;
  for (const ipc::TokenBias& bias : message.logit_bias) {
    sampling.logit_bias.push_back({bias.token, bias.bias});
  }
  sampling.allowed_ids = message.allowed_ids;
  sampling.banned_ids = message.banned_ids;
  request.stop_ids = message.stop_ids;
  for (const ipc::StopSequence& sequence : message.stop_sequences) {
    request.stop_sequences.push_back(sequence.ids);
  }
  request.min_new_tokens = message.min_new_tokens;
  request.ignore_eos = message.ignore_eos;
  request.forced_ids = message.forced_ids;
  request.report.top_logprobs = message.top_logprobs;
  request.report.entropy = message.entropy;
  request.report.kept_set = message.kept_set;
  request.report.prompt_logprobs = message.prompt_logprobs;
  request.masked = message.masked;
  return request;
}

}  // namespace exact::replay
