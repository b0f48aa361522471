// contract_ops.h owns the forward operations of a model as a trainer calls them: one at a time, on
// arrays in its own host memory, by the contract's rules and so with the worker's bits. For
// trainers that can't use PyTorch's own kernels on a Hopper GPU.
//
// Matrices are row-major, contiguous, bf16 as its bits. Dimension letters as in kernels/backend.h.
// One thread at a time. invalid: sizes that contradict each other, or an id or position out of
// range; unsupported: a shape outside the contract, by the dimension's name.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/config.h"
#include "kernels/backend.h"

namespace exact::bridge {

using Bf16Span = std::span<const uint16_t>;
using Bf16Out = std::span<uint16_t>;

struct AttentionSizes {
  int32_t query_heads = 0;  // H
  int32_t kv_heads = 0;     // G
  int32_t head_width = 0;   // E
};

class ContractOps {
 public:
  // threads: 0: one for each core that this process may use; never changes a bit.
  static Result<std::unique_ptr<ContractOps>> create(int threads = 0);

  // Rule N1. x (T, in_features), weight (N, in_features), bias (N) or empty, out (T, N)
  Status linear(int64_t in_features, Bf16Span x, Bf16Span weight, Bf16Span bias, Bf16Out out);
  // Rules N2, N3, form hf. x, out (T, D), weight (D)
  Status rms_norm(Bf16Span x, Bf16Span weight, float epsilon, Bf16Out out);
  // Rule N4, in place. x (T, heads * E), positions (T), cos_sin (P, 2 * E): rope_table()
  Status rope(Bf16Out x, std::span<const int32_t> positions, int64_t head_width, Bf16Span cos_sin);
  // Rule N5, causal, within each of the packed sequences. query, out (T, H * E); keys, values
  // (T, G * E); lengths add up to T
  Status attention(const AttentionSizes& sizes, std::span<const int32_t> lengths, Bf16Span query,
                   Bf16Span keys, Bf16Span values, Bf16Out out);
  // Rule N6. gate, up, out of one size
  Status silu_mul(Bf16Span gate, Bf16Span up, Bf16Out out);
  // Rule N7. logits (R, V), targets (R), out (R)
  Status target_logprobs(int64_t vocabulary, Bf16Span logits, std::span<const int32_t> targets,
                         std::span<float> out);

 private:
  explicit ContractOps(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  std::unique_ptr<Backend> backend_;
};

// Cosines and sines of positions 0 to count - 1 as the config asks for them: (count, 2 * E) bf16.
std::vector<uint16_t> rope_table(const ModelConfig& config, int32_t count);

}  // namespace exact::bridge
