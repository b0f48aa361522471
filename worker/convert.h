// convert.h owns the step between messages and the engine's own types. No decisions but sizes.
#pragma once

#include <cstdint>

#include "engine/engine.h"
#include "ipc/messages.h"

namespace exact::worker {

GenerateRequest to_request(RequestId id, const ipc::Generate& message);
ipc::Completion to_completion(SampleResult result);
ipc::TokenChunk to_chunk(SampleProgress progress);
ipc::ScoreReply to_reply(ScoreResult result, const Digest128& contract);

// At least the bytes of the longest answer or part that this valid request can have, each sample on
// a handful of versions. A kept set may be as large as top_k, allowed_ids or the vocabulary, and
// all of a sample's as kept_ids_limit().
uint64_t reply_bytes(const GenerateRequest& request, ipc::ReplyMode mode,
                     const EngineLimits& limits, int32_t vocabulary);

}  // namespace exact::worker
