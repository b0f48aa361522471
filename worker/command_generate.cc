// command_generate.cc owns `rollout generate`: rollouts for a file of prompts, without a server.
// The output is whole or not there: it is written beside its name and renamed at the end.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/sampling.h"
#include "worker/command.h"
#include "worker/model_options.h"
#include "worker/progress.h"
#include "worker/prompts.h"

namespace exact::worker {
namespace {

struct GenerateOptions {
  ModelOptions model;
  std::string prompts;
  std::string out;
  GenerateRequest defaults;
};

Status at_line(const std::string& path, size_t line_number, const Status& status) {
  return Status(status.code(),
                fmt::format("'{}', line {}: {}", path, line_number, status.message()));
}

// Every line is parsed and checked before the first is run. Line i of the result is request i.
Result<std::vector<PromptLine>> read_prompts(const GenerateOptions& options, const Engine& engine) {
  std::ifstream file(options.prompts);
  if (!file) return Status(Code::not_found, "'" + options.prompts + "' can't be read");
  std::vector<PromptLine> prompts;
  std::string text;
  for (size_t line_number = 1; std::getline(file, text); line_number++) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    Result<PromptLine> line = parse_prompt_line(text, options.defaults);
    if (!line) return at_line(options.prompts, line_number, line.status());
    line->request.id = RequestId{prompts.size()};
    const Status status = validate(line->request, engine.config(), engine.limits());
    if (!status.is_ok()) return at_line(options.prompts, line_number, status);
    prompts.push_back(std::move(line).value());
  }
  if (file.bad()) return Status(Code::device, "'" + options.prompts + "' could not be read whole");
  if (prompts.empty()) {
    return Status(Code::invalid, "'" + options.prompts + "' holds no prompts: write one a line");
  }
  return prompts;
}

// Collects samples as they end, and writes them in the order of the prompts.
class Output {
 public:
  Output(const std::string& path, const std::vector<PromptLine>& prompts, Digest128 contract)
      : path_(path),
        file_(path + ".tmp", std::ios::trunc),
        prompts_(prompts),
        contract_(contract) {}

  bool is_open() const { return file_.is_open(); }
  size_t written() const { return next_; }

  void add(SampleResult sample) {
    auto& samples = done_[sample.request.value];
    const int32_t index = sample.sample_index;
    samples.emplace(index, std::move(sample));
    while (next_ < prompts_.size()) {
      const auto found = done_.find(next_);
      const auto wanted = static_cast<size_t>(prompts_[next_].request.n);
      if (found == done_.end() || found->second.size() < wanted) return;
      for (const auto& [i, whole] : found->second) {
        file_ << sample_line(prompts_[next_], whole, contract_) << '\n';
      }
      done_.erase(found);
      next_++;
    }
  }

  Status finish() {
    file_.close();
    if (file_.fail() || std::rename((path_ + ".tmp").c_str(), path_.c_str()) != 0) {
      return Status(Code::device, "'" + path_ + "' could not be written: is the disk full?");
    }
    return {};
  }

 private:
  std::string path_;
  std::ofstream file_;
  const std::vector<PromptLine>& prompts_;
  Digest128 contract_;
  std::map<uint64_t, std::map<int32_t, SampleResult>> done_;  // not yet written
  size_t next_ = 0;
};

Status generate_all(Engine& engine, const std::vector<PromptLine>& prompts, Output& output) {
  int64_t total = 0;
  for (const PromptLine& prompt : prompts) {
    total += int64_t{prompt.request.n} * effective_max_new_tokens(prompt.request, engine.limits());
  }
  Progress progress("generate", total, "tokens at most");
  size_t next = 0;
  while (next < prompts.size() || engine.has_work()) {
    while (next < prompts.size()) {
      const Status status = engine.submit(prompts[next].request);
      if (status.code() == Code::exhausted && engine.has_work()) break;
      EXACT_RETURN_IF_ERROR(status);
      next++;
    }
    EXACT_ASSIGN(StepReport step, engine.step());
    for (SampleResult& sample : step.samples) output.add(std::move(sample));
    progress.update(static_cast<int64_t>(engine.status().tokens_generated));
  }
  progress.finish();
  return {};
}

Status run_generate(const GenerateOptions& options) {
  EXACT_ASSIGN(LoadedModel model, load_model(options.model));
  EXACT_ASSIGN(const std::vector<PromptLine> prompts, read_prompts(options, *model.engine));
  Output output(options.out, prompts, model.engine->contract());
  if (!output.is_open()) {
    return Status(Code::device, "'" + options.out + "' can't be written: does its folder exist?");
  }
  fmt::print("{}", describe(options.model, model));
  const auto begin = std::chrono::steady_clock::now();
  EXACT_RETURN_IF_ERROR(generate_all(*model.engine, prompts, output));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXACT_RETURN_IF_ERROR(output.finish());

  const EngineStatus status = model.engine->status();
  fmt::print("generated       {} tokens for {} prompts in {:.2f} s: {:.1f} tokens/s\n",
             status.tokens_generated, prompts.size(), seconds.count(),
             static_cast<double>(status.tokens_generated) / seconds.count());
  fmt::print("last logits     {:016x}\n", model.engine->last_logits_hash());
  return {};
}

void add_sampling_options(CLI::App& command, GenerateRequest& defaults) {
  const std::string group = "Defaults for lines that do not say";
  command.add_option("--n", defaults.n, "Samples of each prompt")
      ->group(group)
      ->capture_default_str();
  command.add_option("--seed", defaults.sampling.seed, "Sample i draws with (seed, i)")
      ->group(group)
      ->capture_default_str();
  command.add_option("--max-new-tokens", defaults.max_new_tokens, "0: up to the context")
      ->group(group)
      ->capture_default_str();
  command.add_option("--temperature", defaults.sampling.temperature, "0: greedy")
      ->group(group)
      ->capture_default_str();
  command.add_option("--top-k", defaults.sampling.top_k, "0: off")
      ->group(group)
      ->capture_default_str();
  command.add_option("--top-p", defaults.sampling.top_p, "1: off")
      ->group(group)
      ->capture_default_str();
  command.add_option("--stop-id", defaults.stop_ids, "Ends a sample, and is kept; may be repeated")
      ->group(group);
}

}  // namespace

void add_generate_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate",
      "Rollouts for a file of prompts, without a server. One JSON object a line in:\n"
      "  {\"prompt\": [1, 2, 3], \"n\": 4, \"seed\": 7}     also max_new_tokens, temperature, "
      "top_k, "
      "top_p, stop_ids, id\n"
      "and one for each sample out: ids, logprobs, finish_reason, versions, contract_id, seed.");
  add_model_options(*command, options->model);
  command->add_option("--prompts", options->prompts, "JSON lines to read")->required();
  command->add_option("--out", options->out, "JSON lines to write")->required();
  add_sampling_options(*command, options->defaults);
  command->footer(
      "Example: rollout generate --model model --prompts prompts.jsonl --out out.jsonl "
      "--max-new-tokens 64");
  command->callback([options, &exit_code] { exit_code = report(run_generate(*options)); });
}

}  // namespace exact::worker
