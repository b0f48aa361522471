#include "worker/model_options.h"

#include <fmt/format.h>

#include <utility>

#include "engine/weights.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact::worker {

void add_model_options(CLI::App& command, ModelOptions& options) {
  command
      .add_option("--model", options.model,
                  "Hugging Face directory: config.json and safetensors in bf16")
      ->required();
  command.add_option("--backend", options.backend, "cpu; the CUDA backend is not in this version")
      ->capture_default_str();
  command
      .add_option("--isa", options.isa,
                  "Instruction set of the CPU backend: auto, avx512, avx2 or scalar; the same bits "
                  "from each")
      ->capture_default_str();
  command.add_option("--threads", options.threads, "CPU threads; 0: one for each usable core")
      ->capture_default_str();
  EngineLimits& limits = options.limits;
  command
      .add_option("--max-context", limits.max_context,
                  "Positions of one sequence; 0: the model's, at most 8192")
      ->capture_default_str();
  command.add_option("--page-size", limits.page_size, "Positions in a KV page: 16, 32, 64 or 128")
      ->capture_default_str();
  command
      .add_option("--pages", limits.page_count,
                  "KV pages; 0: enough for 16 sequences of max-context, at most 1 GiB")
      ->capture_default_str();
  command.add_option("--max-step-tokens", limits.max_step_tokens, "Rows of one step")
      ->capture_default_str();
  command.add_option("--max-running", limits.max_running, "Sequences computed together")
      ->capture_default_str();
  command.add_option("--max-waiting", limits.max_waiting, "Sequences in the queue")
      ->capture_default_str();
}

Result<LoadedModel> load_model(const ModelOptions& options) {
  if (options.backend == "cuda") {
    return Status(Code::unsupported,
                  "this version has no CUDA backend: use --backend cpu, which gives the same bits");
  }
  if (options.backend != "cpu") {
    return Status(Code::invalid, "--backend is '" + options.backend + "'; it must be cpu");
  }
  EXACT_ASSIGN(const CpuIsa isa, cpu_isa_from_name(options.isa));
  LoadedModel loaded;
  EXACT_ASSIGN(loaded.config, load_config(options.model));
  EXACT_ASSIGN(loaded.backend, make_cpu_backend({isa, options.threads}));
  auto slot = std::make_unique<WeightSlot>(loaded.config, *loaded.backend);
  EXACT_RETURN_IF_ERROR(load_weights(options.model, *slot));
  EXACT_ASSIGN(loaded.engine,
               Engine::create(loaded.config, *loaded.backend, std::move(slot), options.limits));
  return loaded;
}

std::string describe(const ModelOptions& options, const LoadedModel& model) {
  return fmt::format(
      "model           {}\nbackend         {}, {} threads\ncontract id     {}\nweights digest  "
      "{}\n",
      options.model, model.backend->name(), model.backend->threads(),
      model.engine->contract().to_hex(), model.engine->status().weights_digest.to_hex());
}

}  // namespace exact::worker
