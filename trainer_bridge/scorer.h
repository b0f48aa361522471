// scorer.h owns the trainer's own forward pass: log-probabilities of given tokens under given
// weights, by the same contract as the worker and, bit for bit, as stock PyTorch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/config.h"
#include "kernels/backend.h"
#include "trainer_bridge/weight_publisher.h"

namespace exact::bridge {

struct ScorerOptions {
  int threads = 0;          // 0: one for each core that this process may use; never changes a bit
  int32_t max_context = 0;  // longest text; 0: the model's, at most 8192
};

class Scorer {
 public:
  // A Hugging Face directory.
  static Result<std::unique_ptr<Scorer>> from_directory(const std::string& model_directory,
                                                        const ScorerOptions& options = {});
  // Weights that the trainer holds in memory: every tensor of the model once, in any order.
  static Result<std::unique_ptr<Scorer>> from_tensors(const ModelConfig& config,
                                                      std::span<const NamedTensor> tensors,
                                                      const ScorerOptions& options = {});
  ~Scorer();

  // Other weights for the same model; they are copied. After an error the old ones still score.
  Status set_weights(std::span<const NamedTensor> tensors);

  // tokens.size() - 1 values: log p(tokens[i + 1] | tokens[0..i]).
  Result<std::vector<float>> score(std::span<const int32_t> tokens);
  // Many texts at once, faster than one by one and with the same bits.
  Result<std::vector<std::vector<float>>> score(std::span<const std::vector<int32_t>> texts);

  std::string contract_id() const;
  std::string weights_digest() const;
  uint64_t last_logits_hash() const;  // of the last row of logits that was computed

 private:
  class Impl;
  explicit Scorer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exact::bridge
