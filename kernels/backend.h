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
//
// A step is announced once, by begin_step; the operations on its rows then know whose they are.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/digest.h"
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

// The rows of a step: row t is token ids[t] at positions[t]; the chunks say whose it is.
struct StepRows {
  std::span<const int32_t> ids;
  std::span<const int32_t> positions;
  std::span<const SequenceChunk> chunks;
};

// What rope needs of a model: cos_sin (positions, 2 * E) bf16, cosines, then sines, a row a
// position. With a head norm (1, E), each head is normalised first (Qwen3).
struct RopeParameters {
  TensorView cos_sin;
  const TensorView* query_norm = nullptr;
  const TensorView* key_norm = nullptr;
  float epsilon = 0;
  NormForm form = NormForm::hf;
};

// What one token's logit goes through before the temperature (rule N9).
struct LogitEdit {
  int32_t token = 0;
  int32_t count = 0;  // in the output: frequency and presence penalties
  bool seen = false;  // in prompt or output: repetition penalty
  float bias = 0.0f;
};

// What rule N9 asks for beyond temperature and truncation, and what is reported beside the token.
// Lives, like the row that points to it, until finish().
struct SampleDetail {
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::span<const LogitEdit> edits = {};  // ascending token, each once
  // Bit i % 32 of word i / 32: token i may be drawn; empty: all.
  std::span<const uint32_t> allowed = {};
  int32_t forced_token = -1;  // taken instead of the drawn one; -1: none
  // Filled by the backend where they are not empty. K is at most 64, and V.
  std::span<int32_t> top_ids = {};           // K: the likeliest by the raw logits, equals by id
  std::span<float> top_logprobs = {};        // K: raw
  std::vector<int32_t>* kept_ids = nullptr;  // ascending: what could have been drawn
  float* entropy = nullptr;                  // -(exp(lp) * lp).sum(-1), lp raw
};

// How to draw one token from one row of logits (rules N8, N9). Two rows may draw from one row of
// logits.
struct SampleRow {
  int64_t row = 0;            // of the logits
  uint64_t seed = 0;          // of the request
  uint32_t sample_index = 0;  // which of the request's n samples
  int32_t position = 0;       // absolute position of the token to be drawn
  float temperature = 1.0f;   // 0: greedy, the largest logit, lowest id on a tie
  int32_t top_k = 0;          // 0: off
  float top_p = 1.0f;         // 1: off
  float min_p = 0.0f;         // 0: off
  const SampleDetail* detail = nullptr;
};

struct SampleOutcome {
  // -1: a logit was NaN or infinite, before or after its edits, or no token is allowed; nothing was
  // drawn, and nothing is reported: ids are -1, log-probabilities and the entropy NaN, no id is
  // kept.
  int32_t token = -1;
  float logprob = 0;            // raw: log_softmax(logits.float())[token]
  float processed_logprob = 0;  // of the distribution that was drawn from, renormalised
};

// Bytes from one place in a backend's device memory to another, with the digest128 of each chunk
// of kDigestChunkBytes, the last one shorter. Addresses and size are multiples of 16.
struct DeviceCopy {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  uint64_t bytes = 0;
  std::span<Digest128> chunks;  // on the host; filled when the copies are done
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
  // The bytes of one buffer to another of the same even size.
  virtual Status copy_buffer(const Buffer& from, Buffer& to) {
    const auto columns = static_cast<int64_t>(from.bytes() / 2);
    std::vector<std::byte> host(from.bytes());
    download(host, from.view(DType::bf16, 1, columns));
    EXACT_RETURN_IF_ERROR(finish());
    upload(to.view(DType::bf16, 1, columns), host);
    return finish();
  }
  virtual Result<KvCache> allocate_kv(const KvGeometry& geometry) = 0;
  // Makes `out` an (N, K) weight; its storage is kept when it fits. exhausted: no room.
  virtual Status reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) = 0;
  // Rearranges host weights (n, K) bf16 into rows [first_row, first_row + n) of `out`: matrices
  // that share their input may lie in one.
  virtual void pack_linear(const TensorView& host_weight, int64_t first_row, LinearWeight& out) = 0;
  // The inverse: rows [first_row, first_row + n) of `weight` as they were packed, into host memory
  // (n, K) bf16. unsupported: this backend keeps weights that it can't give back.
  virtual Status unpack_linear(const LinearWeight& weight, int64_t first_row,
                               const TensorView& host_weight) {
    (void)weight, (void)first_row, (void)host_weight;
    return {Code::unsupported, "backend " + std::string(name()) + " can't give weights back"};
  }
  // A weight that is one matrix.
  Status pack_whole(const TensorView& host_weight, LinearWeight& out) {
    EXACT_RETURN_IF_ERROR(reserve_linear(host_weight.rows, host_weight.columns, out));
    pack_linear(host_weight, 0, out);
    return {};
  }

  // ---- weights that are in the device's memory already, for backends that have one
  // Where rows [first_row, ...) of a reserved weight lie as pack_linear takes them, row after row;
  // null where the backend arranges them in another way.
  virtual std::byte* rows_in_place(LinearWeight& weight, int64_t first_row) const {
    (void)weight, (void)first_row;
    return nullptr;
  }
  // Starts copies beside the operations of steps, after everything that was called before; what
  // they write must not be read until copies_done(). unsupported: no memory of its own.
  virtual Status start_copies(std::span<const DeviceCopy> copies) {
    (void)copies;
    return {Code::unsupported, std::string("backend ") + std::string(name()) + " has no device"};
  }
  // Whether all that was started is done; never waits. device: a copy has failed.
  virtual Result<bool> copies_done() { return true; }
  virtual Status finish_copies() { return {}; }  // waits for them
  // Of the GPU, 16 bytes as hex digits; empty: there is none.
  virtual std::string device_uuid() const { return ""; }

  // ---- what the contract covers on this backend: unsupported, by name, or ok
  virtual Status supports_linear(int64_t out_features, int64_t in_features) const = 0;
  virtual Status supports_attention(int32_t query_heads, int32_t kv_heads,
                                    int32_t head_width) const = 0;
  virtual Status supports_vocabulary(int64_t vocabulary) const = 0;

  // ---- a step
  // Says whose rows embed, rope, store_kv and attention work on, until the next call. Returns the
  // rows that activations shall have: T, or more, where the backend pads; what is computed in
  // padding rows is nobody's, and changes no other row.
  virtual int64_t begin_step(const StepRows& step) = 0;
  // The most that begin_step returns for a step of up to `rows` rows.
  virtual int64_t padded_rows(int64_t rows) const { return rows; }
  // Calls `operations`, which calls operations of this backend and nothing else. A backend may
  // record what they do, and repeat the record instead of calling them when `key` and the shape of
  // the step come again. The caller promises: equal keys, equal operations on equal memory.
  virtual void run_recorded(std::span<const uint64_t> key,
                            const std::function<void()>& operations) {
    (void)key;
    operations();
  }
  // A number that this backend has not given out before: a part of such a key.
  virtual uint64_t new_identity() { return ++last_identity_; }

  // ---- operations
  // out[t, :] = table[ids[t], :]                         table (V, D), out (T, D)
  virtual void embed(const TensorView& table, const TensorView& out) = 0;
  // Rules N2, N3.                                        x, out (T, D); weight (1, D)
  virtual void rms_norm(const TensorView& x, const TensorView& weight, float epsilon, NormForm form,
                        const TensorView& out) = 0;
  // x += y, then out = rms_norm(x).
  virtual void add_rms_norm(const TensorView& x, const TensorView& y, const TensorView& weight,
                            float epsilon, NormForm form, const TensorView& out) {
    add(x, y);
    rms_norm(x, weight, epsilon, form, out);
  }
  // Rule N1. out = x weight^T + bias.                    x (T, K), bias (1, N) or null, out (T, N)
  virtual void linear(const TensorView& x, const LinearWeight& weight, const TensorView* bias,
                      const TensorView& out) = 0;
  // Rules N2, N4, in place.                              x (T, heads * E); head_norm (1, E) or null
  virtual void rope(const TensorView& x, const TensorView& cos_sin, const TensorView* head_norm,
                    float epsilon, NormForm form) = 0;
  // Pages of every layer: page from[i] is copied to page to[i], within the cache. No page is named
  // twice in `to`, none of `to` in `from`.
  virtual void copy_pages(KvCache& cache, std::span<const int32_t> from,
                          std::span<const int32_t> to) = 0;
  // Pages of every layer, out to host memory and back. page_bytes(geometry) * pages.size() bytes;
  // what save_pages wrote, load_pages gives any pages, bit for bit.
  virtual size_t page_bytes(const KvGeometry& geometry) const = 0;
  virtual void save_pages(const KvCache& cache, std::span<const int32_t> pages,
                          std::span<std::byte> host) = 0;
  virtual void load_pages(KvCache& cache, std::span<const int32_t> pages,
                          std::span<const std::byte> host) = 0;
  // Writes the step's keys and values (T, G * E) into their pages.
  virtual void store_kv(const TensorView& keys, const TensorView& values, int32_t layer,
                        KvCache& cache) = 0;
  // rope of query and keys, then store_kv. The keys' tensor is scratch afterwards.
  virtual void rope_store_kv(const TensorView& query, const TensorView& keys,
                             const TensorView& values, const RopeParameters& rope_parameters,
                             int32_t layer, KvCache& cache) {
    const RopeParameters& p = rope_parameters;
    rope(query, p.cos_sin, p.query_norm, p.epsilon, p.form);
    rope(keys, p.cos_sin, p.key_norm, p.epsilon, p.form);
    store_kv(keys, values, layer, cache);
  }
  // Rule N5: causal attention of each chunk over its own pages.   query, out (T, H * E)
  virtual void attention(const TensorView& query, const KvCache& cache, int32_t layer,
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

 private:
  uint64_t last_identity_ = 0;
};

}  // namespace exact
