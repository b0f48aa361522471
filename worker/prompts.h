// prompts.h owns the two JSON forms of offline generation: a line of prompts in, a line for each
// sample out. A field that is unknown, of the wrong type or out of range is refused by name.
#pragma once

#include <string>
#include <string_view>

#include "engine/engine.h"
#include "kernels/base/result.h"

namespace exact::worker {

struct PromptLine {
  std::string id = "null";  // JSON: whatever the line's "id" was
  GenerateRequest request;
};

// {"prompt": [ids], "id": any, "n", "seed", "max_new_tokens", "temperature", "top_k", "top_p",
// "stop_ids"}; what the line leaves out is taken from `defaults`. invalid: names the field.
Result<PromptLine> parse_prompt_line(std::string_view line, const GenerateRequest& defaults);

// One line of JSON, without its newline. Numbers have 9 significant digits, so that each fp32 is
// read back with the very bits.
std::string sample_line(const PromptLine& prompt, const SampleResult& sample,
                        const Digest128& contract);

}  // namespace exact::worker
