#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/engine_impl.h"
#include "engine/sampling.h"

namespace exact {
namespace {

constexpr int32_t kDefaultMaxContext = 8192;
constexpr int32_t kDefaultSequences = 16;
constexpr int64_t kDefaultKvBytes = int64_t{1} << 30;

Status out_of_range(const char* name, int64_t value, int64_t low, int64_t high) {
  return Status(Code::invalid, std::string(name) + " is " + std::to_string(value) +
                                   "; it must be from " + std::to_string(low) + " to " +
                                   std::to_string(high));
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

Engine::Impl::Impl(const ModelConfig& config, Backend& backend, const EngineLimits& limits)
    : config_(config),
      backend_(backend),
      limits_(limits),
      scheduler_limits_{limits.max_step_tokens, limits.max_running, limits.page_size},
      contract_(contract_id(config)),
      pages_(limits.page_count, limits.page_size) {}

Result<std::unique_ptr<Engine::Impl>> Engine::Impl::create(const ModelConfig& config,
                                                           Backend& backend,
                                                           std::unique_ptr<WeightSlot> weights,
                                                           const EngineLimits& limits) {
  if (weights == nullptr || !weights->is_complete()) {
    return Status(Code::invalid, "the engine needs a complete set of weights to start with");
  }
  EXACT_ASSIGN(const EngineLimits resolved, resolve_limits(config, limits));
  std::unique_ptr<Impl> impl(new Impl(config, backend, resolved));
  EXACT_ASSIGN(impl->model_,
               Model::create(config, backend, {resolved.max_step_tokens, resolved.max_context}));
  EXACT_ASSIGN(impl->cache_,
               backend.allocate_kv({config.layers, resolved.page_count, resolved.page_size,
                                    config.kv_heads, config.head_width}));
  impl->live_ = std::move(weights);
  impl->live_digest_ = impl->live_->digest();
  return impl;
}

Status Engine::Impl::check_capacity(size_t sequences) const {
  if (failed_) return Status(Code::device, "the engine stopped after a failed step: start it anew");
  if (waiting_.size() + sequences > static_cast<size_t>(limits_.max_waiting)) {
    return Status(Code::exhausted, "the queue holds " + std::to_string(waiting_.size()) + " of " +
                                       std::to_string(limits_.max_waiting) +
                                       " sequences: try again when some are done");
  }
  return {};
}

Sequence& Engine::Impl::enqueue(RequestId request) {
  auto owned = std::make_unique<Sequence>();
  Sequence& sequence = *owned;
  sequence.id = SequenceId{next_sequence_++};
  sequence.request = request;
  sequences_.emplace(sequence.id, std::move(owned));
  open_sequences_[request]++;
  waiting_.push_back(&sequence);
  return sequence;
}

Status Engine::Impl::submit(GenerateRequest request) {
  EXACT_RETURN_IF_ERROR(validate(request, config_, limits_));
  EXACT_RETURN_IF_ERROR(check_capacity(static_cast<size_t>(request.n)));
  if (open_sequences_.contains(request.id)) {
    return Status(Code::invalid, "request id " + std::to_string(request.id.value) +
                                     " is in flight already: choose another");
  }
  for (int32_t i = 0; i < request.n; i++) {
    Sequence& sequence = enqueue(request.id);
    sequence.sample_index = i;
    sequence.sampling = request.sampling;
    sequence.stop_ids = request.stop_ids;
    sequence.max_new_tokens = effective_max_new_tokens(request, limits_);
    sequence.tokens = request.prompt;
    sequence.prompt_size = static_cast<int32_t>(request.prompt.size());
  }
  return {};
}

Status Engine::Impl::submit(ScoreRequest request) {
  EXACT_RETURN_IF_ERROR(validate(request, config_, limits_));
  EXACT_RETURN_IF_ERROR(check_capacity(1));
  if (open_sequences_.contains(request.id)) {
    return Status(Code::invalid, "request id " + std::to_string(request.id.value) +
                                     " is in flight already: choose another");
  }
  Sequence& sequence = enqueue(request.id);
  sequence.is_score = true;
  sequence.tokens = std::move(request.tokens);
  sequence.prompt_size = static_cast<int32_t>(sequence.tokens.size());
  sequence.logprobs.assign(sequence.tokens.size() - 1, 0.0f);
  return {};
}

Status Engine::Impl::cancel(RequestId request, FinishReason reason) {
  if (!open_sequences_.contains(request)) {
    return Status(Code::not_found,
                  "request " + std::to_string(request.value) + " is not in flight");
  }
  std::vector<Sequence*> cancelled;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->request == request) cancelled.push_back(sequence.get());
  }
  std::sort(cancelled.begin(), cancelled.end(),
            [](const Sequence* a, const Sequence* b) { return a->id < b->id; });
  for (Sequence* sequence : cancelled) {
    finish(*sequence, reason, Status(), early_);
  }
  return {};
}

Status Engine::Impl::allow(RequestId request, int32_t, int32_t, std::span<const int32_t>) {
  return Status(Code::not_found,
                "request " + std::to_string(request.value) + " waits for no allowed ids");
}

bool Engine::Impl::has_work() const {
  return !sequences_.empty() || !early_.samples.empty() || !early_.scores.empty() ||
         update_pending_;
}

void Engine::Impl::finish(Sequence& sequence, FinishReason reason, Status error,
                          StepReport& report) {
  if (sequence.is_score) {
    if (reason == FinishReason::cancelled)
      error = Status(Code::cancelled, "cancelled by the client");
    if (reason == FinishReason::deadline)
      error = Status(Code::timeout, "its deadline passed before it was done");
    report.scores.push_back(
        {sequence.request, std::move(error), std::move(sequence.logprobs), version_, live_digest_});
  } else {
    SampleResult result;
    result.request = sequence.request;
    result.sample_index = sequence.sample_index;
    result.reason = reason;
    result.error = std::move(error);
    result.tokens.assign(sequence.tokens.begin() + sequence.prompt_size, sequence.tokens.end());
    result.logprobs = std::move(sequence.logprobs);
    result.processed_logprobs = std::move(sequence.processed_logprobs);
    result.versions = std::move(sequence.versions);
    report.samples.push_back(std::move(result));
  }
  remove(sequence);
}

void Engine::Impl::remove(Sequence& sequence) {
  pages_.release(sequence.id);
  std::erase(running_, &sequence);
  std::erase(waiting_, &sequence);
  const auto open = open_sequences_.find(sequence.request);
  EXACT_CHECK(open != open_sequences_.end(), "a sequence of no request");
  if (--open->second == 0) open_sequences_.erase(open);
  sequences_.erase(sequence.id);
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
Result<StepReport> Engine::step() {
  return impl_->step();
}
Result<WeightSlot*> Engine::begin_update() {
  return impl_->begin_update();
}
Status Engine::commit_update(WeightVersion version, UpdatePolicy policy) {
  return impl_->commit_update(version, policy);
}
void Engine::abort_update() {
  impl_->abort_update();
}
bool Engine::update_pending() const {
  return impl_->update_pending();
}
uint64_t Engine::last_logits_hash() const {
  return impl_->last_logits_hash();
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
