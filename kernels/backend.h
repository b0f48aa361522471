// backend.h owns the interface between a model and the machine that computes it. Every backend
// gives the same bits (docs/numerics.md, rules N1 to N9); they differ in memory and speed alone.
//
// Dimension letters: T rows of this step, D model width, H query heads, G key/value heads, E head
// width, F feed-forward width, V vocabulary, P page size. Activations are bf16, (rows, columns).
//
// Operations run in order and may run later: finish() waits, and tells whether any of them failed.
// Spans and views handed to an operation must live until then. Shapes are the caller's promise:
// a wrong one is a bug and is checked. Inputs outside the contract are refused earlier, by the
// supports_* functions, with a sentence that names what is wrong.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "kernels/base/result.h"
#include "kernels/base/tensor.h"

namespace exact {

// The two RMSNorms that stock trainers run (rule N2): the modules of Llama and Qwen, or F.rms_norm.
enum class NormForm : uint8_t { hf = 0, fused = 1 };

// A weight matrix (out_features N, in_features K) in the backend's own layout.
struct LinearWeight {
  int64_t out_features = 0;
  int64_t in_features = 0;
  Buffer storage;
};

// The shape of a paged key/value cache. Page p of layer l holds P positions of every kv head.
struct KvGeometry {
  int32_t layers = 0;
  int32_t pages = 0;
  int32_t page_size = 0;   // positions in a page: 16, 32, 64 or 128
  int32_t kv_heads = 0;    // G
  int32_t head_width = 0;  // E
};

struct KvCache {
  KvGeometry geometry;
  Buffer storage;  // layout private to the backend
};

// Rows [first_row, first_row + row_count) of this step belong to one sequence and stand at absolute
// positions first_position, first_position + 1, ... Its keys and values lie in `pages`, in order.
struct SequenceChunk {
  int64_t first_row = 0;
  int32_t row_count = 0;
  int32_t first_position = 0;
  std::span<const int32_t> pages;
};

// How to draw one token from one row of logits (rules N8, N9).
struct SampleRow {
  int64_t row = 0;            // of the logits
  uint64_t seed = 0;          // of the request
  uint32_t sample_index = 0;  // which of the request's n samples
  int32_t position = 0;       // absolute position of the token to be drawn
  float temperature = 1.0f;   // 0: greedy, the largest logit, lowest id on a tie
  int32_t top_k = 0;          // 0: off
  float top_p = 1.0f;         // 1: off
  float min_p = 0.0f;         // 0: off
};

struct SampleOutcome {
  int32_t token = -1;           // -1: a logit was NaN or infinite; nothing was drawn
  float logprob = 0;            // raw: log_softmax(logits.float())[token]
  float processed_logprob = 0;  // of the distribution that was drawn from, renormalised
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;  // "cpu-avx512", "cpu-avx2", "cpu-scalar", ...
  virtual int threads() const = 0;

  // ---- memory
  virtual Result<Buffer> allocate(size_t bytes) = 0;  // zeroed; exhausted when there is no room
  virtual void upload(const TensorView& device, std::span<const std::byte> host) = 0;  // contiguous
  virtual void download(std::span<std::byte> host, const TensorView& device) = 0;
  virtual Result<KvCache> allocate_kv(const KvGeometry& geometry) = 0;
  // Rearranges host weights (N, K) bf16 into `out`, whose storage is reused when it fits.
  virtual Status pack_linear(const TensorView& host_weight, LinearWeight& out) = 0;

  // ---- what the contract covers on this backend: unsupported, by name, or ok
  virtual Status supports_linear(int64_t out_features, int64_t in_features) const = 0;
  virtual Status supports_attention(int32_t query_heads, int32_t kv_heads,
                                    int32_t head_width) const = 0;
  virtual Status supports_vocabulary(int64_t vocabulary) const = 0;

  // ---- operations
  // out[t, :] = table[ids[t], :]                         table (V, D), out (T, D)
  virtual void embed(std::span<const int32_t> ids, const TensorView& table,
                     const TensorView& out) = 0;
  // Rules N2, N3.                                        x, out (T, D); weight (1, D)
  virtual void rms_norm(const TensorView& x, const TensorView& weight, float epsilon, NormForm form,
                        const TensorView& out) = 0;
  // Rule N1. out = x weight^T + bias.                    x (T, K), bias (1, N) or null, out (T, N)
  virtual void linear(const TensorView& x, const LinearWeight& weight, const TensorView* bias,
                      const TensorView& out) = 0;
  // Rules N2, N4, in place: with `head_norm` (1, E), each head is normalised first (Qwen3).
  // x (T, heads * E); cos_sin (positions, 2 * E) bf16: cosines, then sines, a row a position.
  virtual void rope(const TensorView& x, std::span<const int32_t> positions,
                    const TensorView& cos_sin, const TensorView* head_norm, float epsilon,
                    NormForm form) = 0;
  // Writes the chunks' keys and values (T, G * E) into their pages.
  virtual void store_kv(const TensorView& keys, const TensorView& values,
                        std::span<const SequenceChunk> chunks, int32_t layer, KvCache& cache) = 0;
  // Rule N5: causal attention of each chunk over its own pages.   query, out (T, H * E)
  virtual void attention(const TensorView& query, const KvCache& cache,
                         std::span<const SequenceChunk> chunks, int32_t layer,
                         const TensorView& out) = 0;
  // Rule N6. out = bf16(silu(gate)) * up.                gate, up, out (T, F)
  virtual void silu_mul(const TensorView& gate, const TensorView& up, const TensorView& out) = 0;
  // Rule N6. x += y.                                     x, y (T, D)
  virtual void add(const TensorView& x, const TensorView& y) = 0;
  // out[i, :] = x[rows[i], :]
  virtual void gather_rows(const TensorView& x, std::span<const int64_t> rows,
                           const TensorView& out) = 0;
  // Rule N7. out[i] = log_softmax(logits[i].float())[targets[i]], on the host after finish().
  // A row with a NaN or infinite logit gives NaN.        logits (R, V) bf16
  virtual void target_logprobs(const TensorView& logits, std::span<const int32_t> targets,
                               std::span<float> out) = 0;
  // Rules N7, N8, N9.                                    outcomes on the host after finish()
  virtual void sample(const TensorView& logits, std::span<const SampleRow> rows,
                      std::span<SampleOutcome> outcomes) = 0;

  // Waits for everything above; the first failure since the last call, if any.
  virtual Status finish() = 0;
};

}  // namespace exact
