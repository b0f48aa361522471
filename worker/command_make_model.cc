// command_make_model.cc owns `rollout make-model`: weights from a hash, for tests and first steps.
#include <fmt/format.h>

#include <memory>
#include <optional>
#include <string>

#include "engine/config.h"
#include "engine/hash_model.h"
#include "worker/command.h"
#include "worker/progress.h"

namespace exact::worker {
namespace {

struct MakeModelOptions {
  std::string config;
  std::string out;
  uint64_t seed = 0;
};

Status run_make_model(const MakeModelOptions& options) {
  std::optional<Progress> progress;
  HashModelOptions hash;
  hash.seed = options.seed;
  hash.progress = [&progress](int64_t done, int64_t total) {
    constexpr int64_t kMiB = 1 << 20;
    if (!progress) progress.emplace("make-model", total / kMiB, "MiB");
    progress->update(done / kMiB);
  };
  EXACT_RETURN_IF_ERROR(make_model(options.config, options.out, hash));
  if (progress) progress->finish();
  EXACT_ASSIGN(const ModelConfig config, load_config(options.out));
  fmt::print("model           {}\nseed            {}\ncontract id     {}\n", options.out,
             options.seed, contract_id(config).to_hex());
  return {};
}

}  // namespace

void add_make_model_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<MakeModelOptions>();
  CLI::App* command = app.add_subcommand(
      "make-model",
      "Make a model whose weights come from an integer hash of their names and a seed: the same\n"
      "arguments give the same bytes on every machine. It speaks no language; it tests exactness.");
  command->add_option("--config", options->config, "A Hugging Face config.json")->required();
  command->add_option("--seed", options->seed, "Seed of the weights")->required();
  command->add_option("--out", options->out, "Directory to write: config.json and safetensors")
      ->required();
  command->footer(
      "Example: rollout make-model --config examples/models/small.json --seed 1 --out model");
  command->callback([options, &exit_code] { exit_code = report(run_make_model(*options)); });
}

}  // namespace exact::worker
