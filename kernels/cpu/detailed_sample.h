// detailed_sample.h owns rule N9 for a row with a SampleDetail on the CPU: a copy of the row in
// fp32 is edited, masked and drawn from; the logits are not written, so that rows may share them.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/context.h"

namespace exact::cpu {

// Bytes of working memory for one row; enough for a row without detail too.
size_t detailed_sample_scratch(int64_t vocabulary);

// row.detail is not null.
SampleOutcome detailed_sample(const CpuContext& context, const uint16_t* logits, int64_t count,
                              const SampleRow& row, void* memory);

}  // namespace exact::cpu
