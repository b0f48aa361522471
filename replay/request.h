// request.h owns the step from the message of a record to the engine's own request.
#pragma once

#include "engine/engine.h"
#include "ipc/messages.h"

namespace exact::replay {

// Every field that decides bits or the sample's end; n = 1 of sample `sample_index`. Priority,
// client, streaming and deadline stay behind: no bit depends on them.
GenerateRequest request_of(const ipc::Generate& message, int32_t sample_index);

}  // namespace exact::replay
