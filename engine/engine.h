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
  int64_t swap_bytes = 0;         // host memory for the pages of preempted sequences; 0: recompute
  // Bytes that move between cache and host memory in the time that a row takes to compute: what
  // swapping is weighed by. 0: estimated from the model's size.
  int64_t row_cost_bytes = 0;
  bool prefix_reuse = true;  // keep the pages of finished sequences for prompts to come
  // Sets of weights that there is memory for: 2, or 1: then updates must be in place.
  int32_t weight_slots = 2;
};

struct TokenBias {
  int32_t token = 0;
  float bias = 0;  // added to the token's logit; [-1000, 1000]
};

// How tokens are drawn (rule N9). What is done to a logit, in this order: repetition penalty,
// frequency and presence penalty, bias, masks, temperature, top-k, top-p, min-p.
struct SamplingParams {
  float temperature = 1.0f;  // [1e-4, 100], or 0: greedy
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // (0, 1]
  uint64_t seed = 0;
  float min_p = 0.0f;                 // [0, 1]; 0: off
  float repetition_penalty = 1.0f;    // [0.01, 100], of tokens in prompt or output; 1: off
  float presence_penalty = 0.0f;      // [-100, 100], of tokens in the output
  float frequency_penalty = 0.0f;     // [-100, 100], times their count in the output
  std::vector<TokenBias> logit_bias;  // a token at most once; at most 1024
  std::vector<int32_t> allowed_ids;   // no other is drawn; empty: all
  std::vector<int32_t> banned_ids;    // never drawn
};

// What a sample reports beside its tokens and their two log-probabilities.
struct ReportParams {
  int32_t top_logprobs = 0;      // of the K likeliest tokens, raw, at each position; at most 64
  bool entropy = false;          // of the raw distribution at each position
  bool kept_set = false;         // the ids that the sampler could have drawn at each position
  bool prompt_logprobs = false;  // raw, of each token of the prompt after the first
};

struct GenerateRequest {
  RequestId id;
  std::vector<int32_t> prompt;  // at least one id
  int32_t n = 1;                // samples; sample i draws with (seed, first_sample + i)
  int32_t first_sample = 0;     // so that a sample of a group can be made again by itself
  int32_t max_new_tokens = 0;   // 0: up to the context
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;  // a sample ends with the first of these, which is kept
  std::vector<std::vector<int32_t>> stop_sequences;  // likewise, where all of one stand at the end
  int32_t min_new_tokens = 0;  // before these, no stop id is drawn and no stop sequence ends
  bool ignore_eos = false;     // else the config's eos_token_id are stop ids too
  // The first tokens of every sample are these, whatever would have been drawn; they are counted
  // and reported as drawn ones are, with their true log-probabilities.
  std::vector<int32_t> forced_ids;
  ReportParams report;
  int32_t priority = 0;  // higher ones are admitted first and preempted last; [-1000, 1000]
  uint32_t client = 0;   // admission takes turns among clients of one priority
  bool stream = false;   // report tokens as they are made (StepReport::progress)
  bool masked = false;   // each token waits for the ids that may be drawn: Engine::allow
};

struct ScoreRequest {
  RequestId id;
  std::vector<int32_t> tokens;  // at least two
  int32_t priority = 0;         // as of GenerateRequest
  uint32_t client = 0;
};

enum class FinishReason : uint8_t {
  length = 0,
  stop = 1,
  cancelled = 2,
  aborted = 3,
  error = 4,
  deadline = 5,
};
std::string_view finish_reason_name(FinishReason reason);

// Tokens [begin, next span's begin) were made by this version of the weights: the keys and values
// of the token before each of them, and its logits. Those of the positions before that are of this
// version too where the span is the first or `kv_rebuilt`; else they are what the spans before it
// made. So the spans and the tokens determine every bit.
struct VersionSpan {
  int32_t begin = 0;
  WeightVersion version;
  Digest128 weights_digest;
  bool kv_rebuilt = false;
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
  // What ReportParams asked for, else empty. Of token i: entropies[i]; the K of top_ids and
  // top_logprobs from i * K, likeliest first, equals by id; the kept_counts[i] ids of kept_ids
  // after those of the tokens before it, ascending.
  std::vector<float> entropies;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  std::vector<int32_t> kept_counts, kept_ids;
  std::vector<float> prompt_logprobs;  // prompt size - 1; the same for each sample of a request
};

// Tokens [begin, begin + tokens.size()) of a sample that asked to be streamed: what this step made.
struct SampleProgress {
  RequestId request;
  int32_t sample_index = 0;
  int32_t begin = 0;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs, processed_logprobs;
};

// A `masked` sample waits for the ids that its token `index` may be.
struct MaskWanted {
  RequestId request;
  int32_t sample_index = 0;
  int32_t index = 0;
  int32_t previous_token = -1;  // token index - 1; -1 at the first
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
  // They go on with the new version over the keys and values that they have; who has no token yet,
  // or whose keys and values are not all there, begins anew (VersionSpan::kv_rebuilt). Keys and
  // values of the old version are in nobody else's reach.
  keep = 3,
};
std::string_view update_policy_name(UpdatePolicy policy);

struct UpdateOptions {
  // 0: every tensor comes. Else the live version: the slot begins as a copy of it, and tensors that
  // don't come stay as they are.
  WeightVersion base{0};
  // Over the live weights, without memory for a second set. From begin_update on no step computes;
  // requests queue. Running sequences go by `policy`: under recompute they wait and are rebuilt,
  // under abort they end; under wait none may run.
  bool in_place = false;
  UpdatePolicy policy = UpdatePolicy::recompute;  // what commit_update will be given
};

enum class EngineHealth : uint8_t {
  serving = 0,
  sleeping = 1,  // requests wait in the queue
  poisoned = 2,  // an update in place failed half-way: new requests are refused, older ones wait
};
std::string_view engine_health_name(EngineHealth health);

struct StepReport {
  std::vector<SampleResult> samples;  // finished in this step
  std::vector<ScoreResult> scores;
  std::vector<SampleProgress> progress;  // in the order of sampling
  std::vector<MaskWanted> masks_wanted;
  int32_t prefill_rows = 0;
  int32_t decode_rows = 0;
  int32_t preempted = 0;    // sequences whose pages were taken: to be recomputed,
  int32_t swapped_out = 0;  // or kept in host memory
  int32_t swapped_in = 0;
  int32_t reused_rows = 0;                 // prompt positions that were found in the cache
  std::optional<WeightVersion> committed;  // an update that became live before this step
};

struct EngineStatus {
  int32_t running = 0, waiting = 0;         // sequences
  int32_t pages_free = 0, pages_total = 0;  // free: of no sequence; some keep texts to be found
  WeightVersion version;
  Digest128 weights_digest;
  uint64_t steps = 0, tokens_generated = 0;
  uint64_t pages_evicted = 0;  // that were kept for prompts to come
  uint64_t pages_copied = 0;   // before a write, because another sample held them too
  EngineHealth health = EngineHealth::serving;
  std::string health_reason;  // a sentence, unless serving: why, and what to do
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
  Status cancel(RequestId request, FinishReason reason = FinishReason::cancelled);
  // The ids that token `index` of a `masked` sample may be: at least one, ascending. invalid: names
  // what is wrong; the sample still waits. not_found: it is not in flight, or waits for another.
  // A sample asks once for each index (StepReport::masks_wanted): for the first in the step after
  // submit, for the next in the step that drew the one before. Until it is answered the sample runs
  // no rows, not even its prompt's; a group's prompt starts when each sample has its first mask.
  Status allow(RequestId request, int32_t sample_index, int32_t index,
               std::span<const int32_t> ids);
  bool has_work() const;
  // False where step() would do nothing until the next call of another function: there is no work,
  // or every sequence waits for Engine::allow.
  bool can_step() const;
  // Plan, run, apply. A failed step is a device error; the engine can't be used after it.
  Result<StepReport> step();

  // ---- weights: begin_update() -> fill the slot -> commit_update() | abort_update()
  // The slot to fill. exhausted: an update is under way, there is no memory for the slot, or
  // sequences run and the update is in place under `wait`. invalid: base is not the live version,
  // the engine has no whole live version to change, or it has one slot and the update is not in
  // place. unsupported: keep in place. A whole update may begin while the engine sleeps, and its
  // commit wakes it.
  Result<WeightSlot*> begin_update(const UpdateOptions& options = {});
  // Makes the staging slot live before the next step (under `wait`, once running sequences are
  // done; no new ones start meanwhile). invalid: the slot is not complete, or version is not
  // above the live one; the update is then given up as by abort_update.
  Status commit_update(WeightVersion version, UpdatePolicy policy);
  // The live version goes on; but an update in place that has written anything leaves the engine
  // poisoned, until a whole update is live. `why` becomes part of health_reason.
  void abort_update(std::string_view why = "it was given up");
  bool update_pending() const;  // committed, waiting for running sequences
  // The live version: to be read (WeightSlot::read_tensor) between steps, until the next update is
  // begun or goes live.
  WeightSlot& live_weights();

  // ---- sleep: the memory of weights and cache is given back until wake()
  // Returns the bytes of the backend's memory that were freed. Without keep_weights only a whole
  // update wakes. Running sequences go on afterwards with the same bits, their KV rebuilt.
  // exhausted: an update is under way. invalid: asleep or poisoned. device: the weights could not
  // be saved; the engine is awake.
  Result<uint64_t> sleep(bool keep_weights);
  // ok: awake, as it also was before. exhausted: no memory yet; still asleep. invalid: the weights
  // were not kept. corrupt: what came back is not what was saved; only a whole update wakes.
  Status wake();

  EngineStatus status() const;  // cheap: counters alone
  // Pages, holders, prefix index, swap space and sequences agree. corrupt: a bug, and which. Debug
  // builds look after every step.
  Status check_integrity() const;
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
