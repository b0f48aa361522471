#include "trainer_bridge/scorer.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "engine/engine.h"
#include "engine/weights.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact::bridge {
namespace {

constexpr int32_t kTextsAtOnce = 64;
constexpr int32_t kPageSize = 64;

std::vector<int64_t> shape_of(const TensorSpec& spec) {
  if (spec.is_vector) return {spec.columns};
  return {spec.rows, spec.columns};
}

// Fills a slot with the trainer's tensors; every error names the tensor.
Status fill_slot(std::span<const NamedTensor> tensors, WeightSlot& slot) {
  const std::vector<TensorSpec>& table = slot.table();
  std::unordered_map<std::string_view, size_t> index_by_name;
  for (size_t i = 0; i < table.size(); i++) index_by_name.emplace(table[i].name, i);

  slot.begin();
  for (const NamedTensor& tensor : tensors) {
    const auto found = index_by_name.find(tensor.name);
    if (found == index_by_name.end()) {
      return Status(Code::invalid, "tensor '" + tensor.name + "' does not belong to this model");
    }
    const TensorSpec& spec = table[found->second];
    if (tensor.shape != shape_of(spec) ||
        tensor.bytes.size() != static_cast<size_t>(spec.bytes())) {
      return Status(Code::invalid, "tensor '" + tensor.name + "' must have " +
                                       std::to_string(spec.rows) + " x " +
                                       std::to_string(spec.columns) + " bf16 values");
    }
    EXACT_RETURN_IF_ERROR(slot.append(found->second, tensor.bytes));
  }
  return slot.complete();
}

}  // namespace

class Scorer::Impl {
 public:
  template <class Fill>
  static Result<std::unique_ptr<Impl>> create(const ModelConfig& config,
                                              const ScorerOptions& options, const Fill& fill) {
    auto impl = std::make_unique<Impl>();
    CpuOptions cpu;
    cpu.threads = options.threads;
    EXACT_ASSIGN(impl->backend_, make_cpu_backend(cpu));
    auto slot = std::make_unique<WeightSlot>(config, *impl->backend_);
    EXACT_RETURN_IF_ERROR(fill(*slot));
    impl->digest_ = slot->digest();
    EngineLimits limits;
    limits.max_context = options.max_context;
    limits.page_size = kPageSize;
    limits.max_running = kTextsAtOnce;
    EXACT_ASSIGN(impl->engine_, Engine::create(config, *impl->backend_, std::move(slot), limits));
    return impl;
  }

  Status set_weights(std::span<const NamedTensor> tensors) {
    EXACT_ASSIGN(WeightSlot* const slot, engine_->begin_update());
    if (const Status filled = fill_slot(tensors, *slot); !filled) {
      engine_->abort_update();
      return filled;
    }
    const Digest128 digest = slot->digest();
    // Nothing runs between two calls of score(): the new weights are live before the next row.
    EXACT_RETURN_IF_ERROR(engine_->commit_update(WeightVersion{engine_->status().version.value + 1},
                                                 UpdatePolicy::wait));
    EXACT_ASSIGN(const StepReport report, engine_->step());
    EXACT_CHECK(report.committed.has_value(), "an idle engine did not take its new weights");
    digest_ = digest;
    return {};
  }

  // All or nothing, so that a refused text leaves no other in the queue.
  Result<std::vector<std::vector<float>>> score(std::span<const std::vector<int32_t>> texts) {
    std::vector<std::vector<float>> logprobs(texts.size());
    Status error;
    size_t submitted = 0;
    size_t open = 0;
    while (open > 0 || (submitted < texts.size() && error)) {
      while (error && submitted < texts.size() && open < kTextsAtOnce) {
        error = engine_->submit(ScoreRequest{RequestId{submitted}, texts[submitted]});
        if (!error) break;
        submitted++;
        open++;
      }
      if (open == 0) break;
      EXACT_ASSIGN(StepReport report, engine_->step());
      open -= report.scores.size();
      for (ScoreResult& result : report.scores) {
        if (error && !result.error) error = result.error;
        EXACT_CHECK(result.weights_digest == digest_, "a text was scored by other weights");
        logprobs[result.request.value] = std::move(result.logprobs);
      }
    }
    if (!error) return error;
    return logprobs;
  }

  const Engine& engine() const { return *engine_; }
  const Digest128& digest() const { return digest_; }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Engine> engine_;  // after the backend whose memory it holds
  Digest128 digest_;
};

Scorer::Scorer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Scorer::~Scorer() = default;

Result<std::unique_ptr<Scorer>> Scorer::from_directory(const std::string& model_directory,
                                                       const ScorerOptions& options) {
  EXACT_ASSIGN(const ModelConfig config, load_config(model_directory));
  EXACT_ASSIGN(auto impl, Impl::create(config, options, [&](WeightSlot& slot) {
                 return load_weights(model_directory, slot);
               }));
  return std::unique_ptr<Scorer>(new Scorer(std::move(impl)));
}

Result<std::unique_ptr<Scorer>> Scorer::from_tensors(const ModelConfig& config,
                                                     std::span<const NamedTensor> tensors,
                                                     const ScorerOptions& options) {
  EXACT_ASSIGN(auto impl, Impl::create(config, options,
                                       [&](WeightSlot& slot) { return fill_slot(tensors, slot); }));
  return std::unique_ptr<Scorer>(new Scorer(std::move(impl)));
}

Status Scorer::set_weights(std::span<const NamedTensor> tensors) {
  return impl_->set_weights(tensors);
}

Result<std::vector<float>> Scorer::score(std::span<const int32_t> tokens) {
  const std::vector<std::vector<int32_t>> texts{{tokens.begin(), tokens.end()}};
  EXACT_ASSIGN(auto logprobs, impl_->score(texts));
  return std::move(logprobs.front());
}

Result<std::vector<std::vector<float>>> Scorer::score(std::span<const std::vector<int32_t>> texts) {
  return impl_->score(texts);
}

std::string Scorer::contract_id() const {
  return impl_->engine().contract().to_hex();
}
std::string Scorer::weights_digest() const {
  return impl_->digest().to_hex();
}
uint64_t Scorer::last_logits_hash() const {
  return impl_->engine().last_logits_hash();
}

}  // namespace exact::bridge
