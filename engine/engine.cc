#include "engine/engine.h"

#include <algorithm>
#include <string>

#include "engine/engine_impl.h"
#include "engine/tensor_table.h"

namespace exact {
namespace {

constexpr int32_t kDefaultMaxContext = 8192;
constexpr int32_t kDefaultSequences = 16;
constexpr int64_t kDefaultKvBytes = int64_t{1} << 30;
// On a GPU a row takes about 2 operations a parameter, 4e14 of them a second, while 5e10 bytes a
// second come and go: 1 byte for each 4,000 parameters.
constexpr int64_t kParametersPerByte = 4096;

Status out_of_range(const char* name, int64_t value, int64_t low, int64_t high) {
  return Status(Code::invalid, std::string(name) + " is " + std::to_string(value) +
                                   "; it must be from " + std::to_string(low) + " to " +
                                   std::to_string(high));
}

int64_t parameters_of_a_row(const ModelConfig& config) {
  int64_t parameters = 0;
  for (const TensorSpec& spec : tensor_table(config)) {
    if (!spec.is_vector) parameters += spec.rows * spec.columns;
  }
  return parameters;
}

// Fills in the defaults and checks the rest.
Result<EngineLimits> resolve_limits(const ModelConfig& config, EngineLimits limits) {
  if (limits.max_context == 0) {
    limits.max_context = std::min(longest_context(config), kDefaultMaxContext);
  }
  if (limits.max_context < 2 || limits.max_context > config.max_positions) {
    return out_of_range("max_context", limits.max_context, 2, config.max_positions);
  }
  if (limits.max_context > longest_context(config)) {
    return Status(Code::unsupported,
                  "max_context is " + std::to_string(limits.max_context) +
                      ", but the model's sliding_window of " +
                      std::to_string(config.attention_window) + " has known bits up to " +
                      std::to_string(longest_context(config)) + " positions only");
  }
  const int32_t page = limits.page_size;
  if (page != 16 && page != 32 && page != 64 && page != 128) {
    return Status(Code::invalid,
                  "page_size is " + std::to_string(page) + "; it must be 16, 32, 64 or 128");
  }
  if (limits.max_step_tokens < 1 || limits.max_step_tokens > 1 << 20) {
    return out_of_range("max_step_tokens", limits.max_step_tokens, 1, 1 << 20);
  }
  if (limits.max_running < 1 || limits.max_running > 1 << 16) {
    return out_of_range("max_running", limits.max_running, 1, 1 << 16);
  }
  if (limits.max_waiting < 1 || limits.max_waiting > 1 << 20) {
    return out_of_range("max_waiting", limits.max_waiting, 1, 1 << 20);
  }
  const int32_t pages_of_one = (limits.max_context + page - 1) / page;
  if (limits.page_count == 0) {
    const int64_t page_bytes =
        int64_t{config.layers} * 2 * config.kv_heads * config.head_width * page * 2;
    const int64_t affordable = std::max<int64_t>(kDefaultKvBytes / page_bytes, pages_of_one);
    limits.page_count = static_cast<int32_t>(
        std::min<int64_t>(int64_t{kDefaultSequences} * pages_of_one, affordable));
  }
  if (limits.page_count < pages_of_one || limits.page_count > 1 << 24) {
    return Status(Code::invalid, "page_count is " + std::to_string(limits.page_count) +
                                     "; one sequence of max_context " +
                                     std::to_string(limits.max_context) + " needs " +
                                     std::to_string(pages_of_one) +
                                     " pages: raise page_count or lower max_context");
  }
  if (limits.weight_slots < 1 || limits.weight_slots > 2) {
    return out_of_range("weight_slots", limits.weight_slots, 1, 2);
  }
  if (limits.swap_bytes < 0 || limits.swap_bytes > int64_t{1} << 46) {
    return out_of_range("swap_bytes", limits.swap_bytes, 0, int64_t{1} << 46);
  }
  if (limits.row_cost_bytes < 0 || limits.row_cost_bytes > int64_t{1} << 32) {
    return out_of_range("row_cost_bytes", limits.row_cost_bytes, 0, int64_t{1} << 32);
  }
  if (limits.row_cost_bytes == 0) {
    limits.row_cost_bytes = parameters_of_a_row(config) / kParametersPerByte;
  }
  return limits;
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::length:
      return "length";
    case FinishReason::stop:
      return "stop";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::aborted:
      return "aborted";
    case FinishReason::error:
      return "error";
    case FinishReason::deadline:
      return "deadline";
  }
  return "unknown";
}

std::string_view update_policy_name(UpdatePolicy policy) {
  switch (policy) {
    case UpdatePolicy::wait:
      return "wait";
    case UpdatePolicy::recompute:
      return "recompute";
    case UpdatePolicy::abort:
      return "abort";
    case UpdatePolicy::keep:
      return "keep";
  }
  return "unknown";
}

std::string_view engine_health_name(EngineHealth health) {
  switch (health) {
    case EngineHealth::serving:
      return "serving";
    case EngineHealth::sleeping:
      return "sleeping";
    case EngineHealth::poisoned:
      return "poisoned";
  }
  return "unknown";
}

Engine::Impl::Impl(const ModelConfig& config, Backend& backend, const EngineLimits& limits,
                   const SchedulerLimits& scheduler_limits)
    : config_(config),
      backend_(backend),
      limits_(limits),
      scheduler_limits_(scheduler_limits),
      contract_(contract_id(config)),
      pages_(limits.page_count, limits.page_size, limits.prefix_reuse),
      swap_(limits.swap_bytes, static_cast<size_t>(scheduler_limits.page_bytes)) {}

Result<std::unique_ptr<Engine::Impl>> Engine::Impl::create(const ModelConfig& config,
                                                           Backend& backend,
                                                           std::unique_ptr<WeightSlot> weights,
                                                           const EngineLimits& limits) {
  if (weights == nullptr || !weights->is_complete()) {
    return Status(Code::invalid, "the engine needs a complete set of weights to start with");
  }
  EXACT_ASSIGN(const EngineLimits resolved, resolve_limits(config, limits));
  const KvGeometry geometry = {config.layers, resolved.page_count, resolved.page_size,
                               config.kv_heads, config.head_width};
  const SchedulerLimits scheduler_limits = {
      resolved.max_step_tokens, resolved.max_running, resolved.page_size,
      static_cast<int64_t>(backend.page_bytes(geometry)), resolved.row_cost_bytes};
  std::unique_ptr<Impl> impl(new Impl(config, backend, resolved, scheduler_limits));
  EXACT_ASSIGN(impl->model_,
               Model::create(config, backend, {resolved.max_step_tokens, resolved.max_context}));
  EXACT_ASSIGN(impl->cache_, backend.allocate_kv(geometry));
  impl->geometry_ = geometry;
  impl->running_.reserve(static_cast<size_t>(resolved.max_running));
  impl->live_ = std::move(weights);
  impl->live_digest_ = impl->live_->digest();
  return impl;
}

EngineStatus Engine::Impl::status() const {
  EngineStatus status;
  status.running = static_cast<int32_t>(running_.size());
  status.waiting = sequences_.count() - status.running;
  status.pages_free = pages_.available();
  status.pages_total = pages_.page_count();
  status.version = version_;
  status.weights_digest = live_digest_;
  status.steps = steps_;
  status.tokens_generated = tokens_generated_;
  status.pages_evicted = pages_.evictions();
  status.pages_copied = pages_copied_;
  status.health = health_;
  status.health_reason = health_reason_;
  return status;
}

uint64_t Engine::Impl::last_logits_hash() const {
  if (last_logits_.data == nullptr || failed_) return 0;
  std::vector<std::byte> row(static_cast<size_t>(last_logits_.columns) * 2);
  backend_.download(row, last_logits_);
  return backend_.finish().is_ok() ? digest64(row) : 0;
}

// ---- the public face
Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(const ModelConfig& config, Backend& backend,
                                               std::unique_ptr<WeightSlot> weights,
                                               const EngineLimits& limits) {
  EXACT_ASSIGN(auto impl, Impl::create(config, backend, std::move(weights), limits));
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Status Engine::submit(GenerateRequest request) {
  return impl_->submit(std::move(request));
}
Status Engine::submit(ScoreRequest request) {
  return impl_->submit(std::move(request));
}
Status Engine::cancel(RequestId request, FinishReason reason) {
  return impl_->cancel(request, reason);
}
Status Engine::allow(RequestId request, int32_t sample_index, int32_t index,
                     std::span<const int32_t> ids) {
  return impl_->allow(request, sample_index, index, ids);
}
bool Engine::has_work() const {
  return impl_->has_work();
}
bool Engine::can_step() const {
  return impl_->can_step();
}
Result<StepReport> Engine::step() {
  return impl_->step();
}
Result<WeightSlot*> Engine::begin_update(const UpdateOptions& options) {
  return impl_->begin_update(options);
}
Status Engine::commit_update(WeightVersion version, UpdatePolicy policy) {
  return impl_->commit_update(version, policy);
}
void Engine::abort_update(std::string_view why) {
  impl_->abort_update(why);
}
Result<uint64_t> Engine::sleep(bool keep_weights) {
  return impl_->sleep(keep_weights);
}
Status Engine::wake() {
  return impl_->wake();
}
bool Engine::update_pending() const {
  return impl_->update_pending();
}
uint64_t Engine::last_logits_hash() const {
  return impl_->last_logits_hash();
}
Status Engine::check_integrity() const {
  return impl_->check_integrity();
}
WeightSlot& Engine::live_weights() {
  return impl_->live_weights();
}
EngineStatus Engine::status() const {
  return impl_->status();
}
const ModelConfig& Engine::config() const {
  return impl_->config();
}
const EngineLimits& Engine::limits() const {
  return impl_->limits();
}
Digest128 Engine::contract() const {
  return impl_->contract();
}

}  // namespace exact
