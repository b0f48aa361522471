#include "worker/model_options.h"

#include <fmt/format.h>

#include <utility>

#include "engine/weights.h"
#include "kernels/make_backend.h"

namespace exact::worker {

void add_model_options(CLI::App& command, ModelOptions& options) {
  command
      .add_option("--model", options.model,
                  "Hugging Face directory: config.json and safetensors in bf16")
      ->required();
  command
      .add_option(
          "--backend", options.backend,
          "auto, cpu or cuda; auto is cuda where there is a Hopper GPU. The same bits from each")
      ->capture_default_str();
  command.add_option("--device", options.device, "GPU of the CUDA backend, counted from 0")
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
  command
      .add_option(
          "--swap-mib", options.swap_mib,
          "Host memory that keeps the KV pages of preempted sequences; 0: they are computed "
          "again. The same bits")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command
      .add_option(
          "--row-cost-bytes", limits.row_cost_bytes,
          "Bytes that move to or from host memory while one row is computed: what swapping is "
          "weighed by; 0: estimated")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      .add_option("--weight-slots", limits.weight_slots,
                  "Sets of weights that memory is used for: 2, or 1: weight updates are in place")
      ->check(CLI::Range(1, 2))
      ->capture_default_str();
  command.add_flag("--no-prefix-reuse", options.no_prefix_reuse,
                   "Compute each prompt anew, also where the cache holds its beginning. The same "
                   "bits");
}

Result<LoadedModel> load_model(const ModelOptions& options) {
  BackendOptions backend;
  backend.kind = options.backend;
  EXACT_ASSIGN(backend.cpu.isa, cpu_isa_from_name(options.isa));
  backend.cpu.threads = options.threads;
  backend.cuda.device = options.device;
  EngineLimits limits = options.limits;
  limits.swap_bytes = options.swap_mib << 20;
  limits.prefix_reuse = !options.no_prefix_reuse;
  LoadedModel loaded;
  EXACT_ASSIGN(loaded.config, load_config(options.model));
  EXACT_ASSIGN(loaded.backend, make_backend(backend));
  auto slot = std::make_unique<WeightSlot>(loaded.config, *loaded.backend);
  EXACT_RETURN_IF_ERROR(load_weights(options.model, *slot));
  EXACT_ASSIGN(loaded.engine,
               Engine::create(loaded.config, *loaded.backend, std::move(slot), limits));
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
