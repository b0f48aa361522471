// trainer_options.h owns the command line of trainer_loop.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "engine/engine.h"
#include "ipc/endpoint.h"

namespace exact::examples {

struct TrainerOptions {
  std::string endpoint = ipc::default_endpoint();
  std::string model;
  int32_t steps = 5;
  int32_t prompts = 4;
  int32_t n = 4;
  int32_t max_new_tokens = 32;
  uint64_t seed = 1;
  UpdatePolicy policy = UpdatePolicy::recompute;
  double sigma = 0.02;
};

inline void add_options(CLI::App& app, TrainerOptions& options) {
  app.description(
      "A small trainer: pushes weights into a running worker, pulls rollouts, and checks every\n"
      "log-probability against its own forward pass, bit for bit. Learns by hill climbing (the\n"
      "reward is the share of even token ids), so it needs no framework and no GPU.\n\n"
      "Example: trainer_loop --model DIR --steps 5 --policy recompute\n"
      "Exit codes: 0 every bit equal, 1 a check failed, 2 usage, 3 environment.");
  app.add_option("--endpoint", options.endpoint, "Where the worker listens")->capture_default_str();
  app.add_option("--model", options.model,
                 "Model directory that the worker serves: the first weights")
      ->required();
  app.add_option("--steps", options.steps, "Versions to publish and judge")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--prompts", options.prompts, "Prompts in each step")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  app.add_option("--n", options.n, "Completions of each prompt")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--max-new-tokens", options.max_new_tokens, "Tokens of each completion")
      ->check(CLI::Range(1, 65'536))
      ->capture_default_str();
  app.add_option("--seed", options.seed,
                 "Of prompts, sampling and noise: the same seed, the same run")
      ->capture_default_str();
  app.add_option("--sigma", options.sigma, "Size of a proposal, relative to each tensor's values")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  const auto set_policy = [&options](const std::string& name) {
    options.policy = name == "wait"        ? UpdatePolicy::wait
                     : name == "recompute" ? UpdatePolicy::recompute
                                           : UpdatePolicy::abort;
  };
  app.add_option_function<std::string>(
         "--policy", set_policy,
         "What a push does to the group in flight: wait (it ends on the old weights), "
         "recompute (it goes on under the new ones) or abort (it ends at once)")
      ->check(CLI::IsMember({"wait", "recompute", "abort"}))
      ->default_str("recompute");
}

}  // namespace exact::examples
