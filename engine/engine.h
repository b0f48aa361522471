// engine.h owns the engine: requests in, exact tokens out, one step at a time. No sockets, clock or
// threads of its own. Only step(), commit_update() and the calls that say so change state.
//
// Bits depend on a sequence's own tokens, parameters and the weights; never on what runs beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/types.h"
#include "engine/weights.h"
#include "kernels/backend.h"

namespace exact {

// What the engine may use; memory is taken once, at the start.
struct EngineLimits {
  int32_t max_context = 0;        // positions of one sequence; 0: the model's, at most 8192
  int32_t page_size = 64;         // positions in a page: 16, 32, 64 or 128
  int32_t page_count = 0;         // 0: enough for 16 sequences of max_context, at most 1 GiB
  int32_t max_step_tokens = 256;  // rows of one step: decode rows first, then prefill chunks
  int32_t max_running = 64;       // sequences in the batch
  int32_t max_waiting = 4096;     // sequences in the queue; beyond: exhausted
};

struct SamplingParams {
  float temperature = 1.0f;  // [1e-4, 100], or 0: greedy
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // (0, 1]
  uint64_t seed = 0;
};

struct GenerateRequest {
  RequestId id;
  std::vector<int32_t> prompt;  // at least one id
  int32_t n = 1;                // samples; sample i draws with (seed, i)
  int32_t max_new_tokens = 0;   // 0: up to the context
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;  // a sample ends with the first of these, which is kept
};

struct ScoreRequest {
  RequestId id;
  std::vector<int32_t> tokens;  // at least two
};

enum class FinishReason : uint8_t { length = 0, stop = 1, cancelled = 2, aborted = 3, error = 4 };
std::string_view finish_reason_name(FinishReason reason);

// Tokens [begin, next span's begin) were made by this version of the weights.
struct VersionSpan {
  int32_t begin = 0;
  WeightVersion version;
  Digest128 weights_digest;
};

struct SampleResult {
  RequestId request;
  int32_t sample_index = 0;
  FinishReason reason = FinishReason::length;
  Status error;                           // why, when reason is error or aborted
  std::vector<int32_t> tokens;            // generated ids
  std::vector<float> logprobs;            // raw: temperature 1, nothing masked
  std::vector<float> processed_logprobs;  // of the distribution that was drawn from
  std::vector<VersionSpan> versions;
};

struct ScoreResult {
  RequestId request;
  Status error;
  std::vector<float> logprobs;  // tokens.size() - 1: of each token after the first
  WeightVersion version;
  Digest128 weights_digest;
};

// What happens to running sequences when new weights are committed.
enum class UpdatePolicy : uint8_t {
  wait = 0,       // they finish on the old version; the new one is live when the last has
  recompute = 1,  // their KV is rebuilt; later tokens are those of the new version, exactly
  abort = 2,      // they end at once, with what they have
};

struct StepReport {
  std::vector<SampleResult> samples;  // finished in this step
  std::vector<ScoreResult> scores;
  int32_t prefill_rows = 0;
  int32_t decode_rows = 0;
  int32_t preempted = 0;
  std::optional<WeightVersion> committed;  // an update that became live before this step
};

struct EngineStatus {
  int32_t running = 0, waiting = 0;  // sequences
  int32_t pages_free = 0, pages_total = 0;
  WeightVersion version;
  Digest128 weights_digest;
  uint64_t steps = 0, tokens_generated = 0;
};

class Engine {
 public:
  // Takes a complete slot as version 1. unsupported: the model is outside the contract on this
  // backend; exhausted: the limits do not fit in memory.
  static Result<std::unique_ptr<Engine>> create(const ModelConfig& config, Backend& backend,
                                                std::unique_ptr<WeightSlot> weights,
                                                const EngineLimits& limits);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // invalid (the message names the field), or exhausted when the queue is full. All or nothing.
  Status submit(GenerateRequest request);
  Status submit(ScoreRequest request);
  // Its samples come back as cancelled from the next step. not_found: no such request is in flight.
  Status cancel(RequestId request);
  bool has_work() const;
  // Plan, run, apply. A failed step is a device error; the engine can't be used after it.
  Result<StepReport> step();

  // ---- weights: begin_update() -> fill the slot -> commit_update() | abort_update()
  // The staging slot, emptied. exhausted: an update is under way.
  Result<WeightSlot*> begin_update();
  // Makes the staging slot live before the next step (under `wait`, once running sequences are
  // done; no new ones start meanwhile). invalid: the slot is not complete, or version is not
  // above the live one; the staging slot is then given up and the live version goes on.
  Status commit_update(WeightVersion version, UpdatePolicy policy);
  void abort_update();
  bool update_pending() const;  // committed, waiting for running sequences

  EngineStatus status() const;  // cheap: counters alone
  // xxh3-64 of the last row of logits computed, 0 before the first; fetches the row.
  uint64_t last_logits_hash() const;
  const ModelConfig& config() const;
  const EngineLimits& limits() const;
  Digest128 contract() const;

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exact
