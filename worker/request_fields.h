// request_fields.h owns the list of what one line of prompts, or an option, may set: each field of
// a request by the name that it has on the wire. What needs a client beside it (masks, streams) is
// not here.
#pragma once

#include "engine/engine.h"

namespace exact::worker {

// Calls visit(name, field) for each; `Request` is GenerateRequest, const or not.
template <class Request, class Visit>
void for_each_field(Request& request, Visit visit) {
  visit("prompt", request.prompt);
  visit("n", request.n);
  visit("seed", request.sampling.seed);
  visit("max_new_tokens", request.max_new_tokens);
  visit("min_new_tokens", request.min_new_tokens);
  visit("temperature", request.sampling.temperature);
  visit("top_k", request.sampling.top_k);
  visit("top_p", request.sampling.top_p);
  visit("min_p", request.sampling.min_p);
  visit("repetition_penalty", request.sampling.repetition_penalty);
  visit("presence_penalty", request.sampling.presence_penalty);
  visit("frequency_penalty", request.sampling.frequency_penalty);
  visit("logit_bias", request.sampling.logit_bias);
  visit("allowed_ids", request.sampling.allowed_ids);
  visit("banned_ids", request.sampling.banned_ids);
  visit("stop_ids", request.stop_ids);
  visit("stop_sequences", request.stop_sequences);
  visit("ignore_eos", request.ignore_eos);
  visit("forced_ids", request.forced_ids);
  visit("top_logprobs", request.report.top_logprobs);
  visit("entropy", request.report.entropy);
  visit("kept_set", request.report.kept_set);
  visit("prompt_logprobs", request.report.prompt_logprobs);
  visit("priority", request.priority);
}

}  // namespace exact::worker
