// chain_backend.h owns a backend whose whole model is a hash: what stands in the cache for a
// position is the hash of the weights' identity and all tokens up to it, made from what stands at
// the position before. So a page of another sequence, of old weights or of stale memory changes
// every token that is drawn after it, and millions of steps take seconds.
#pragma once

#include <bit>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/backend.h"

namespace exact {

class ChainBackend : public Backend {
 public:
  static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t z = (a ^ std::rotl(b, 32)) * 0x9E3779B97F4A7C15u + b;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    return z ^ (z >> 31);
  }
  static uint64_t before_text(uint64_t weights) { return mix(weights, 1); }
  static uint64_t extend(uint64_t hash, int32_t token) {
    return mix(hash, static_cast<uint64_t>(token) + 7);
  }
  static float logprob(uint64_t hash, int32_t token) {
    return -static_cast<float>(mix(hash, static_cast<uint64_t>(token) + 99) >> 44);
  }
  // From the text with this hash; the seed, sample and position of a row count, no other field.
  static SampleOutcome draw(uint64_t hash, const SampleRow& row, int64_t vocabulary) {
    const uint64_t bits = mix(mix(hash, row.seed), (uint64_t{row.sample_index} << 32) +
                                                       static_cast<uint64_t>(row.position));
    SampleOutcome outcome;
    outcome.token = static_cast<int32_t>(bits % static_cast<uint64_t>(vocabulary));
    if (row.detail != nullptr && row.detail->forced_token >= 0) {
      outcome.token = row.detail->forced_token;
    }
    outcome.logprob = logprob(hash, outcome.token);
    outcome.processed_logprob = outcome.logprob - 1;
    return outcome;
  }

  uint64_t weights_identity = 0;  // of the last step's weights

  std::string_view name() const override { return "chain"; }
  int threads() const override { return 1; }
  Result<Buffer> allocate(size_t bytes) override {
    return Buffer(std::calloc(bytes + 1, 1), bytes, [](void* data) { std::free(data); });
  }
  void upload(const TensorView&, std::span<const std::byte>) override {}
  void download(std::span<std::byte>, const TensorView&) override {}
  Result<KvCache> allocate_kv(const KvGeometry& geometry) override {
    KvCache cache;
    cache.geometry = geometry;
    auto memory = allocate(static_cast<size_t>(geometry.pages) * page_bytes(geometry));
    cache.storage = std::move(memory).value();
    std::memset(cache.storage.data(), 0xEE, cache.storage.bytes());
    page_size_ = geometry.page_size;
    kv_ = static_cast<uint64_t*>(cache.storage.data());
    return cache;
  }
  size_t page_bytes(const KvGeometry& geometry) const override {
    return static_cast<size_t>(geometry.page_size) * sizeof(uint64_t);
  }
  void copy_pages(KvCache& cache, std::span<const int32_t> from,
                  std::span<const int32_t> to) override {
    for (size_t i = 0; i < to.size(); i++) {
      for (const int32_t other : from) EXACT_CHECK(other != to[i], "a page copied from and to");
      std::memcpy(page(to[i]), page(from[i]), page_bytes(cache.geometry));
    }
  }
  void save_pages(const KvCache& cache, std::span<const int32_t> pages,
                  std::span<std::byte> host) override {
    const size_t bytes = page_bytes(cache.geometry);
    for (size_t i = 0; i < pages.size(); i++) {
      std::memcpy(host.data() + i * bytes, page(pages[i]), bytes);
    }
  }
  void load_pages(KvCache& cache, std::span<const int32_t> pages,
                  std::span<const std::byte> host) override {
    const size_t bytes = page_bytes(cache.geometry);
    for (size_t i = 0; i < pages.size(); i++) {
      std::memcpy(page(pages[i]), host.data() + i * bytes, bytes);
    }
  }
  Status reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) override {
    if (out.storage.data() == nullptr) {
      EXACT_ASSIGN(out.storage, allocate(8));
    }
    out.out_features = out_features;
    out.in_features = in_features;
    return {};
  }
  void pack_linear(const TensorView&, int64_t, LinearWeight&) override {}
  Status supports_linear(int64_t, int64_t) const override { return {}; }
  Status supports_attention(int32_t, int32_t, int32_t) const override { return {}; }
  Status supports_vocabulary(int64_t) const override { return {}; }

  int64_t begin_step(const StepRows& step) override {
    step_ = step;
    return static_cast<int64_t>(step.ids.size());
  }
  void run_recorded(std::span<const uint64_t> key, const std::function<void()>&) override {
    const uint64_t weights = key[1];
    weights_identity = weights;
    hashes_.resize(step_.ids.size());
    for (const SequenceChunk& chunk : step_.chunks) {
      for (int32_t i = 0; i < chunk.row_count; i++) {
        const int32_t position = chunk.first_position + i;
        const auto row = static_cast<size_t>(chunk.first_row + i);
        const uint64_t before =
            position == 0 ? before_text(weights) : *slot(chunk.pages, position - 1);
        hashes_[row] = *slot(chunk.pages, position) = extend(before, step_.ids[row]);
      }
    }
  }
  void embed(const TensorView&, const TensorView&) override {}
  void rms_norm(const TensorView&, const TensorView&, float, NormForm, const TensorView&) override {
  }
  void linear(const TensorView&, const LinearWeight&, const TensorView*,
              const TensorView& out) override {
    logits_ = static_cast<std::byte*>(out.data);
  }
  void rope(const TensorView&, const TensorView&, const TensorView*, float, NormForm) override {}
  void store_kv(const TensorView&, const TensorView&, int32_t, KvCache&) override {}
  void attention(const TensorView&, const KvCache&, int32_t, const TensorView&) override {}
  void silu_mul(const TensorView&, const TensorView&, const TensorView&) override {}
  void add(const TensorView&, const TensorView&) override {}
  void gather_rows(const TensorView&, std::span<const int64_t> rows, const TensorView&) override {
    logit_rows_ = rows;
  }
  void target_logprobs(const TensorView& logits, std::span<const int32_t> targets,
                       std::span<float> out) override {
    for (size_t i = 0; i < out.size(); i++) {
      out[i] = logprob(hash_at(logits, static_cast<int64_t>(i)), targets[i]);
    }
  }
  void sample(const TensorView& logits, std::span<const SampleRow> rows,
              std::span<SampleOutcome> outcomes) override {
    for (size_t i = 0; i < rows.size(); i++) {
      outcomes[i] = draw(hash_at(logits, rows[i].row), rows[i], logits.columns);
    }
  }
  Status finish() override { return {}; }

 private:
  uint64_t* page(int32_t index) const {
    return kv_ + static_cast<std::ptrdiff_t>(index) * page_size_;
  }
  uint64_t* slot(std::span<const int32_t> pages, int32_t position) const {
    return page(pages[static_cast<size_t>(position / page_size_)]) + position % page_size_;
  }
  uint64_t hash_at(const TensorView& logits, int64_t row) const {
    const auto first = (static_cast<std::byte*>(logits.data) - logits_) / (2 * logits.columns);
    return hashes_[static_cast<size_t>(logit_rows_[static_cast<size_t>(first + row)])];
  }

  int32_t page_size_ = 0;
  uint64_t* kv_ = nullptr;
  StepRows step_;
  std::vector<uint64_t> hashes_;  // of each row
  std::span<const int64_t> logit_rows_;
  std::byte* logits_ = nullptr;
};

}  // namespace exact
