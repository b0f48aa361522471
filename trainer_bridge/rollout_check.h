// rollout_check.h owns what a client can verify of a rollout without weights: that each completion
// is what was asked for, in its lengths, counts, spans and ids. Bits are completion_check.h's.
#pragma once

#include <cstdint>

#include "ipc/messages.h"
#include "kernels/base/result.h"

namespace exact::bridge {

// One completion of `request`. corrupt: names the sample, and the first thing that can't be.
Status check_completion(const ipc::Generate& request, const ipc::Completion& completion);

// The whole group: n completions in order, with the request's seed, each as above.
Status check_rollout(const ipc::Generate& request, const ipc::GenerateReply& reply);

}  // namespace exact::bridge
