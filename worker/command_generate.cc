// command_generate.cc owns `rollout generate`: rollouts for a file of prompts, without a server.
// The output is whole or not there; what is done lies beside it until then (partial_file.h), so
// that a run which was killed can go on.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "engine/sampling.h"
#include "kernels/base/digest.h"
#include "worker/command.h"
#include "worker/model_options.h"
#include "worker/partial_file.h"
#include "worker/progress.h"
#include "worker/prompts.h"
#include "worker/sample_line.h"
#include "worker/sampling_options.h"
#include "worker/version.h"

namespace exact::worker {
namespace {

struct GenerateOptions {
  ModelOptions model;
  std::string prompts;
  std::string out;
  bool restart = false;
  SamplingOptions sampling;
};

struct Prompts {
  std::vector<PromptLine> lines;
  Digest128 digest;  // of the file
};

Status at_line(const std::string& path, size_t line_number, const Status& status) {
  return Status(status.code(),
                fmt::format("'{}', line {}: {}", path, line_number, status.message()));
}

// Every line is parsed and checked before the first is run. Line i of the result is request i.
Result<Prompts> read_prompts(const std::string& path, const GenerateRequest& defaults,
                             const Engine& engine) {
  std::ifstream file(path);
  if (!file) return Status(Code::not_found, "'" + path + "' can't be read");
  Prompts prompts;
  DigestStream digest;
  std::string text;
  for (size_t line_number = 1; std::getline(file, text); line_number++) {
    digest.update(text + "\n");
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    Result<PromptLine> line = parse_prompt_line(text, defaults);
    if (!line) return at_line(path, line_number, line.status());
    line->request.id = RequestId{prompts.lines.size()};
    const Status status = validate(line->request, engine.config(), engine.limits());
    if (!status.is_ok()) return at_line(path, line_number, status);
    prompts.lines.push_back(std::move(line).value());
  }
  if (file.bad()) return Status(Code::device, "'" + path + "' could not be read whole");
  if (prompts.lines.empty()) {
    return Status(Code::invalid, "'" + path + "' holds no prompts: write one a line");
  }
  prompts.digest = digest.finish();
  return prompts;
}

// What decides the bytes of the output. Threads, instruction set and schedule do not.
RunFacts facts_of_run(const GenerateRequest& defaults, const Prompts& prompts,
                      const Engine& engine) {
  RunFacts facts{{"release", std::string(kVersion)},
                 {"contract id", engine.contract().to_hex()},
                 {"weights digest", engine.status().weights_digest.to_hex()},
                 {"prompts file", prompts.digest.to_hex()},
                 {"--max-context", std::to_string(engine.limits().max_context)}};
  for (auto& fact : facts_of(defaults)) facts.push_back(std::move(fact));
  return facts;
}

Result<PartialFile> open_output(const GenerateOptions& options, const GenerateRequest& defaults,
                                const Prompts& prompts, const Engine& engine) {
  std::vector<int32_t> samples;
  samples.reserve(prompts.lines.size());
  for (const PromptLine& line : prompts.lines) samples.push_back(line.request.n);
  return PartialFile::open(options.out, facts_of_run(defaults, prompts, engine), samples,
                           options.restart);
}

// Runs the prompts that are not complete; each sample is kept as soon as it is done.
Status generate_all(Engine& engine, const std::vector<PromptLine>& prompts, PartialFile& output) {
  int64_t total = 0;
  for (size_t i = 0; i < prompts.size(); i++) {
    if (output.is_complete(i)) continue;
    total += int64_t{prompts[i].request.n} *
             effective_max_new_tokens(prompts[i].request, engine.limits());
  }
  Progress progress("generate", total, "tokens at most");
  size_t next = 0;
  while (next < prompts.size() || engine.has_work()) {
    while (next < prompts.size()) {
      if (!output.is_complete(next)) {
        const Status status = engine.submit(prompts[next].request);
        if (status.code() == Code::exhausted && engine.has_work()) break;
        EXACT_RETURN_IF_ERROR(status);
      }
      next++;
    }
    EXACT_ASSIGN(StepReport step, engine.step());
    for (const SampleResult& sample : step.samples) {
      const auto prompt = static_cast<size_t>(sample.request.value);
      EXACT_RETURN_IF_ERROR(output.append(prompt, sample.sample_index,
                                          sample_line(prompts[prompt], sample, engine.contract())));
    }
    progress.update(static_cast<int64_t>(engine.status().tokens_generated));
  }
  progress.finish();
  return {};
}

Status run_generate(const GenerateOptions& options) {
  EXACT_ASSIGN(const GenerateRequest defaults, resolve(options.sampling));
  EXACT_ASSIGN(LoadedModel model, load_model(options.model));
  EXACT_ASSIGN(const Prompts prompts, read_prompts(options.prompts, defaults, *model.engine));
  EXACT_ASSIGN(PartialFile output, open_output(options, defaults, prompts, *model.engine));
  fmt::print("{}", describe(options.model, model));
  if (output.resumed() > 0) {
    fmt::print("resumed         {} of {} prompts were done already\n", output.resumed(),
               prompts.lines.size());
  }
  std::fflush(stdout);
  const auto begin = std::chrono::steady_clock::now();
  EXACT_RETURN_IF_ERROR(generate_all(*model.engine, prompts.lines, output));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXACT_RETURN_IF_ERROR(output.finish());

  const EngineStatus status = model.engine->status();
  fmt::print("generated       {} tokens for {} prompts in {:.2f} s: {:.1f} tokens/s\n",
             status.tokens_generated, prompts.lines.size() - output.resumed(), seconds.count(),
             static_cast<double>(status.tokens_generated) / seconds.count());
  fmt::print("last logits     {:016x}\n", model.engine->last_logits_hash());
  return {};
}

}  // namespace

void add_generate_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate",
      "Rollouts for a file of prompts, without a server. One JSON object a line in:\n"
      "  {\"prompt\": [1, 2, 3], \"n\": 4, \"seed\": 7, \"id\": \"anything\"}\n"
      "with any of the defaults below under its own name, '-' as '_': max_new_tokens, top_p, "
      "stop_ids, banned_ids, forced_ids,\n"
      "stop_sequences [[1, 2], [3]], logit_bias {\"17\": -2.5}, entropy true, ... And one object "
      "for each sample out, in the order\nof the prompts: ids, logprobs, finish_reason, versions, "
      "contract_id, seed, and what was to be reported.\n"
      "A run that was killed goes on where it was when the same command is given again: what is "
      "done lies in OUT.partial.");
  add_model_options(*command, options->model);
  command->add_option("--prompts", options->prompts, "JSON lines to read")->required();
  command->add_option("--out", options->out, "JSON lines to write")->required();
  command->add_flag("--restart", options->restart,
                    "Throw away what an unfinished run left in OUT.partial, and begin anew");
  add_sampling_options(*command, options->sampling);
  command->footer(
      "Example: rollout generate --model model --prompts prompts.jsonl --out out.jsonl "
      "--max-new-tokens 64");
  command->callback([options, &exit_code] { exit_code = report(run_generate(*options)); });
}

}  // namespace exact::worker
