// model.h owns the forward pass, written once over Backend: a step of T rows, prefill and decode
// alike, from token ids to logits. It owns the step's activations; weights and KV belong to others.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "engine/config.h"
#include "engine/weights.h"
#include "kernels/backend.h"

namespace exact {

struct ModelLimits {
  int32_t max_rows = 0;     // T of one step; also the most rows of logits
  int32_t max_context = 0;  // positions of one sequence
};

// Sees (T, D) hidden states as they are computed: `layer` 0 .. L - 1 is the input of that layer, L
// is the output of the final norm (Hugging Face's output_hidden_states).
using HiddenTap = std::function<void(int32_t layer, const TensorView& hidden)>;

class Model {
 public:
  // unsupported: the backend can't keep the contract for one of the model's shapes.
  static Result<std::unique_ptr<Model>> create(const ModelConfig& config, Backend& backend,
                                               const ModelLimits& limits);

  // Enqueues the layers; keys and values go to `cache`. The normed hidden states stay for logits().
  void forward(const ModelWeights& weights, const StepRows& step, KvCache& cache);
  // Logits (rows.size(), V) of the last forward's rows. Valid until the next call.
  TensorView logits(const ModelWeights& weights, std::span<const int64_t> rows);

  void set_tap(HiddenTap tap) { tap_ = std::move(tap); }

 private:
  Model(const ModelConfig& config, Backend& backend, const ModelLimits& limits)
      : config_(config),
        backend_(backend),
        limits_(limits),
        max_rows_(backend.padded_rows(limits.max_rows)),
        identity_(backend.new_identity()) {}
  Status allocate();
  Status build_rope_table();
  void run_layers(const ModelWeights& weights, KvCache& cache);
  void attention_block(const LayerWeights& layer, int32_t layer_index, KvCache& cache);
  void feed_forward_block(const LayerWeights& layer);
  void linear(const TensorView& x, const LinearWeight& weight, const Buffer& bias,
              const TensorView& out);
  TensorView norm_weight(const Buffer& weight, int64_t width) const;

  ModelConfig config_;
  Backend& backend_;
  ModelLimits limits_;
  int64_t max_rows_;   // limits_.max_rows, with the backend's padding
  uint64_t identity_;  // of the activations' memory
  HiddenTap tap_;
  int64_t rows_ = 0;                    // of the step in hand, with padding
  Buffer rope_table_;                   // (max_context, 2 E)
  Buffer hidden_, normed_, projected_;  // (T, D)
  Buffer qkv_;                          // (T, H E + 2 G E)
  Buffer attended_;                     // (T, H E)
  Buffer gate_up_;                      // (T, 2 F)
  Buffer activated_;                    // (T, F)
  Buffer logit_hidden_;                 // (T, D), the rows that want logits
  Buffer logits_;                       // (T, V)
};

}  // namespace exact
