// reference.h is every operation of backend.h on plain spans, literal and slow, straight from the
// rules: the truth that a backend is tested against. No threads, no intrinsics, no paging.
//
// Matrices are row-major and contiguous. Dimension letters as in backend.h. A span of the wrong
// size is a bug and is checked; a shape outside the contract is computed by the same formulas all
// the same, so that tests can tell what PyTorch does there.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace exact::reference {

// Where cuBLASLt steps by 16 or, in its unaligned kernels, by 8 (odd out-features).
enum class LinearStep : uint8_t { k16, k8 };

struct LinearShape {
  int64_t rows = 0;          // T
  int64_t out_features = 0;  // N
  int64_t in_features = 0;   // K
  LinearStep step = LinearStep::k16;
};

// out[t, :] = table[ids[t], :]                               table (V, D), out (T, D)
void embed(std::span<const int32_t> ids, std::span<const uint16_t> table, int64_t width,
           std::span<uint16_t> out);

// Rule N1. x (T, K), weight (N, K), bias (N) or empty, out (T, N)
void linear(const LinearShape& shape, std::span<const uint16_t> x, std::span<const uint16_t> weight,
            std::span<const uint16_t> bias, std::span<uint16_t> out);

// Rules N2, N3. x, out (T, D), weight (D). `tensor_rows` is how many rows PyTorch's tensor had:
// from 16 on it changes nothing.
void rms_norm(std::span<const uint16_t> x, std::span<const uint16_t> weight, float epsilon,
              NormForm form, std::span<uint16_t> out, int64_t tensor_rows = 16);

// Rule N4, in place, with rule N2 on each head first where head_norm (E) is not empty.
// x (T, heads * E), cos_sin (positions, 2 * E)
void rope(std::span<uint16_t> x, std::span<const int32_t> positions,
          std::span<const uint16_t> cos_sin, int64_t head_width,
          std::span<const uint16_t> head_norm, float epsilon, NormForm form);

struct AttentionShape {
  int32_t query_heads = 0;  // H
  int32_t kv_heads = 0;     // G
  int32_t head_width = 0;   // E
};

// Rule N5, causal. query, out (T, H * E) at positions first_position, ...; keys, values (S, G * E)
// from position 0 on, with S > the last query's position.
void attention(const AttentionShape& shape, std::span<const uint16_t> query, int32_t first_position,
               std::span<const uint16_t> keys, std::span<const uint16_t> values,
               std::span<uint16_t> out);

// Rule N6. out = silu(gate) * up
void silu_mul(std::span<const uint16_t> gate, std::span<const uint16_t> up,
              std::span<uint16_t> out);

// Rule N6. x += y
void add(std::span<uint16_t> x, std::span<const uint16_t> y);

// Rule N7 over one fp32 row; -inf is a token that a mask dropped. `row` is the row's index in the
// tensor, which matters outside the domain alone (V % 4 != 0).
std::vector<float> log_softmax(std::span<const float> row, int64_t row_index = 0);

// Rule N7. log_softmax(logits.float())[target]; NaN where a logit is NaN or infinite.
float target_logprob(std::span<const uint16_t> logits, int32_t target);

// -(exp(lp) * lp).sum(-1) of one row of log-probabilities; a NaN is 0x7fffffff. `tensor_rows` is
// how many rows PyTorch's tensor had: from 16 on it changes nothing.
float entropy(std::span<const float> logprobs, int64_t tensor_rows = 16);

// Rules N7, N8, N9 on one row of logits, with what row.detail asks for; `row.row` is not read.
SampleOutcome sample(std::span<const uint16_t> logits, const SampleRow& row);

// Rule N9: which tokens top-k, top-p and min-p keep, of z = logits / T: finite, or -inf for a token
// that a mask dropped. One is finite at least.
std::vector<bool> kept_tokens(std::span<const float> z, const SampleRow& row);

}  // namespace exact::reference
