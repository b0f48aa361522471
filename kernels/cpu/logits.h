// logits.h owns rules N7 and N9 on the CPU: log-probabilities of given tokens, and the draw.
#pragma once

#include <span>

#include "kernels/backend.h"
#include "kernels/cpu/context.h"

namespace exact::cpu {

Status target_logprobs(CpuContext& context, const TensorView& logits,
                       std::span<const int32_t> targets, std::span<float> out);

Status sample(CpuContext& context, const TensorView& logits, std::span<const SampleRow> rows,
              std::span<SampleOutcome> outcomes);

}  // namespace exact::cpu
