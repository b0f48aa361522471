// convert.h owns the step between messages and the engine's own types. No decisions but sizes.
#pragma once

#include <cstdint>

#include "engine/engine.h"
#include "ipc/messages.h"

namespace exact::worker {

GenerateRequest to_request(RequestId id, ipc::Generate message);
ipc::Completion to_completion(SampleResult result);
ipc::ScoreReply to_reply(ScoreResult result, const Digest128& contract);

// At least the bytes of the longest answer this request can have, each sample on one version.
uint64_t reply_bytes(const ipc::Generate& message, int32_t max_context);

}  // namespace exact::worker
