// prompts.h owns the form in which prompts come to offline generation: a JSON object a line. A
// field that is unknown, of the wrong type or out of range is refused by name.
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

// {"prompt": [ids], "id": any, ...}: the fields of request_fields.h, logit_bias as an object of ids
// and numbers. What the line leaves out is taken from `defaults`. invalid: names the field.
Result<PromptLine> parse_prompt_line(std::string_view line, const GenerateRequest& defaults);

}  // namespace exact::worker
