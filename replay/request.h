// request.h owns the step from a Generate to the engine's own request: the worker takes it for a
// message and replay for a record, so that no field can be read in two ways.
#pragma once

#include "engine/engine.h"
#include "ipc/messages.h"

namespace exact::replay {

// Every field that decides bits or a sample's end. Id, n, priority, client, streaming and deadline
// stay behind: no bit depends on them.
GenerateRequest request_of(const ipc::Generate& message);

}  // namespace exact::replay
