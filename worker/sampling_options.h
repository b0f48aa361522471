// sampling_options.h owns the options that stand for what a line of prompts does not say.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kernels/base/result.h"

namespace exact::worker {

struct SamplingOptions {
  GenerateRequest defaults;
  std::vector<std::string> logit_bias;      // "TOKEN:BIAS"
  std::vector<std::string> stop_sequences;  // "ID,ID,..."
};

void add_sampling_options(CLI::App& command, SamplingOptions& options);

// The defaults with the written lists in them. invalid: names the option and what it must look
// like.
Result<GenerateRequest> resolve(const SamplingOptions& options);

// The fields of a request but its prompt, each by name and as text: equal texts, equal requests.
std::vector<std::pair<std::string, std::string>> facts_of(const GenerateRequest& request);

}  // namespace exact::worker
