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

class Scorer {
 public:
  // A Hugging Face directory.
  static Result<std::unique_ptr<Scorer>> from_directory(const std::string& model_directory);
  // Weights that the trainer holds in memory.
  static Result<std::unique_ptr<Scorer>> from_tensors(const ModelConfig& config,
                                                      std::span<const NamedTensor> tensors);
  ~Scorer();

  // tokens.size() - 1 values: log p(tokens[i + 1] | tokens[0..i]).
  Result<std::vector<float>> score(std::span<const int32_t> tokens);
  std::string contract_id() const;
  std::string weights_digest() const;
  uint64_t last_logits_hash() const;

 private:
  class Impl;
  explicit Scorer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exact::bridge
