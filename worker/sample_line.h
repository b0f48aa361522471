// sample_line.h owns the JSON of one finished sample, as offline generation writes it.
#pragma once

#include <string>

#include "engine/engine.h"
#include "worker/prompts.h"

namespace exact::worker {

// One line, without its newline: the same bytes for the same sample, always. Numbers have 9
// significant digits, so that each fp32 is read back with the very bits.
std::string sample_line(const PromptLine& prompt, const SampleResult& sample,
                        const Digest128& contract);

}  // namespace exact::worker
