#include "replay/replayer.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "engine/config.h"

namespace exact::replay {
namespace {

// splitmix64: order and limits, which decide no bit.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int32_t between(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  void shuffle(std::vector<size_t>& values) {
    for (size_t i = values.size(); i > 1; i--) std::swap(values[i - 1], values[bits() % i]);
  }

 private:
  uint64_t state_;
};

constexpr int32_t kLargestBatch = 24;

// What one call works on.
struct Run {
  const Plan& plan;
  std::span<const RecordedSample> samples;
  Mode mode;
  const ModelConfig& config;
  Backend& backend;
  std::vector<SampleResult> results;  // by piece
  int64_t tokens_made = 0;
};

EngineLimits limits_for(const Run& run, std::span<const size_t> pieces, Random& random) {
  int64_t context = 2;
  for (const size_t i : pieces) {
    const GenerateRequest& request = run.plan.pieces[i].request;
    context = std::max(context, std::ssize(request.prompt) + request.max_new_tokens);
  }
  EngineLimits limits;
  limits.max_context =
      static_cast<int32_t>(std::min<int64_t>(context, longest_context(run.config)));
  limits.max_waiting = static_cast<int32_t>(pieces.size());
  if (run.mode == Mode::alone) {
    limits.max_running = 1;
    limits.prefix_reuse = false;
    return limits;
  }
  constexpr int32_t kPageSizes[] = {16, 32, 64, 128};
  limits.page_size = kPageSizes[random.between(0, 3)];
  limits.max_running = random.between(2, 48);
  limits.max_step_tokens = random.between(limits.max_running, 256);
  limits.prefix_reuse = random.between(0, 3) > 0;
  return limits;
}

// An id list that is missing or refused ends the sample: it is not what was recorded then.
void answer(Engine& engine, const MaskWanted& wanted, const Run& run) {
  const Piece& piece = run.plan.pieces[wanted.request.value];
  const auto ids = mask_of(run.samples[piece.sample].record, wanted.index);
  if (!ids.empty() && engine.allow(wanted.request, 0, wanted.index, ids).is_ok()) return;
  (void)engine.cancel(wanted.request);  // not_found: it has ended in this very step
}

GenerateRequest request_for(const Piece& piece, size_t index) {
  GenerateRequest request = piece.request;
  request.id = RequestId{index};
  return request;
}

template <class Done>
Status run_batch(Engine& engine, std::vector<GenerateRequest> requests, const Run& run,
                 const Done& done) {
  for (GenerateRequest& request : requests) {
    SampleResult refused;
    refused.request = request.id;
    refused.reason = FinishReason::error;
    refused.error = engine.submit(std::move(request));
    if (!refused.error.is_ok()) done(std::move(refused));
  }
  while (engine.has_work()) {
    EXACT_ASSIGN(StepReport report, engine.step());
    for (const MaskWanted& wanted : report.masks_wanted) answer(engine, wanted, run);
    for (SampleResult& result : report.samples) done(std::move(result));
  }
  return {};
}

// Log-probabilities of the recorded ids, whatever this engine would have drawn.
Result<std::optional<Located>> locate(Engine& engine, size_t index, const Run& run) {
  const Piece& piece = run.plan.pieces[index];
  const ipc::Completion& made = run.samples[piece.sample].record.completion;
  GenerateRequest request = request_for(piece, index);
  request.max_new_tokens = piece.end;
  request.min_new_tokens = std::min(request.min_new_tokens, piece.end);
  request.forced_ids.assign(made.tokens.begin(), made.tokens.begin() + piece.end);
  request.report = {};
  std::optional<SampleResult> forced;
  EXACT_RETURN_IF_ERROR(run_batch(engine, {std::move(request)}, run,
                                  [&](SampleResult result) { forced = std::move(result); }));
  if (!forced || std::ssize(forced->logprobs) < piece.end) return std::optional<Located>();
  Piece raw = piece;
  raw.is_last = false;  // a forced end says nothing
  raw.request.report.prompt_logprobs = false;
  RecordedSample only;  // ids and raw log-probabilities alone
  only.record.completion.tokens = made.tokens;
  only.record.completion.logprobs = made.logprobs;
  SampleResult again;
  again.tokens = std::move(forced->tokens);
  again.logprobs = std::move(forced->logprobs);
  Located located;
  located.first = first_difference(only, raw, again);
  located.arithmetic_agrees = !located.first.has_value();
  return std::optional<Located>(std::move(located));
}

Status run_pieces(Engine& engine, std::vector<size_t> order, Run& run, Random& random,
                  const std::function<void(int64_t)>& progress) {
  if (run.mode != Mode::alone) random.shuffle(order);
  const auto keep = [&](SampleResult result) {
    const auto index = static_cast<size_t>(result.request.value);
    run.tokens_made += run.plan.pieces[index].end - run.plan.pieces[index].begin;
    run.results[index] = std::move(result);
    if (progress) progress(run.tokens_made);
  };
  for (size_t begin = 0; begin < order.size();) {
    size_t count = 1;
    if (run.mode == Mode::batches) count = static_cast<size_t>(random.between(1, kLargestBatch));
    if (run.mode == Mode::rerun) count = order.size();
    count = std::min(count, order.size() - begin);
    std::vector<GenerateRequest> requests;
    for (size_t i = begin; i < begin + count; i++) {
      requests.push_back(request_for(run.plan.pieces[order[i]], order[i]));
    }
    EXACT_RETURN_IF_ERROR(run_batch(engine, std::move(requests), run, keep));
    begin += count;
  }
  return {};
}

Status compare_pieces(Engine& engine, std::span<const size_t> pieces, const Run& run,
                      Report& report) {
  for (const size_t index : pieces) {
    const Piece& piece = run.plan.pieces[index];
    const RecordedSample& sample = run.samples[piece.sample];
    report.pieces++;
    report.tokens += static_cast<uint64_t>(piece.end - piece.begin);
    auto difference = first_difference(sample, piece, run.results[index]);
    if (!difference) continue;
    Finding finding{sample.record_id, sample.record.completion.sample_index, run.mode,
                    std::move(*difference), std::nullopt};
    EXACT_ASSIGN(finding.located, locate(engine, index, run));
    report.findings.push_back(std::move(finding));
  }
  return {};
}

Status check_contracts(const Plan& plan, std::span<const RecordedSample> samples,
                       const ModelConfig& config) {
  const std::string contract = contract_id(config).to_hex();
  for (const Piece& piece : plan.pieces) {
    const RecordedSample& sample = samples[piece.sample];
    if (sample.contract_id == contract) continue;
    return Status(Code::contract_mismatch,
                  "record " + std::to_string(sample.record_id) + " was made under contract " +
                      sample.contract_id + ", and this program and config have " + contract +
                      ": give the config.json and the release that made it");
  }
  return {};
}

}  // namespace

std::string_view mode_name(Mode mode) {
  switch (mode) {
    case Mode::alone:
      return "alone";
    case Mode::batches:
      return "batches";
    case Mode::rerun:
      return "rerun";
  }
  return "unknown";
}

std::string_view cause_of(const Finding& finding) {
  if (!finding.located) return "";
  if (!finding.located->arithmetic_agrees) return "arithmetic";
  return finding.difference.field == "logprobs" ? "neighbours" : "sampling";
}

ModelDirectories::ModelDirectories(std::vector<std::string> directories)
    : directories_(std::move(directories)), digests_(directories_.size()) {}

Status ModelDirectories::load(const Digest128& weights, WeightSlot& slot) {
  for (size_t i = 0; i < directories_.size(); i++) {
    if (digests_[i] && *digests_[i] != weights) continue;
    slot.begin();
    EXACT_RETURN_IF_ERROR(load_weights(directories_[i], slot));
    digests_[i] = slot.digest();
    if (*digests_[i] == weights) return {};
  }
  return Status(Code::not_found, "no directory has weights of digest " + weights.to_hex());
}

Result<Report> run_plan(const Plan& plan, std::span<const RecordedSample> samples, Mode mode,
                        uint64_t seed, const ModelConfig& config, Backend& backend,
                        WeightsSource& source, const std::function<void(int64_t)>& progress) {
  EXACT_RETURN_IF_ERROR(check_contracts(plan, samples, config));
  std::map<Digest128, std::vector<size_t>> by_weights;
  for (size_t i = 0; i < plan.pieces.size(); i++) {
    by_weights[plan.pieces[i].weights].push_back(i);
  }
  Run run{plan, samples, mode, config, backend, std::vector<SampleResult>(plan.pieces.size()), 0};
  Random random(seed);
  Report report;
  std::vector<bool> made(plan.pieces.size());
  for (const auto& [weights, pieces] : by_weights) {
    auto slot = std::make_unique<WeightSlot>(config, backend);
    slot->begin();
    const Status loaded = source.load(weights, *slot);
    if (loaded.code() == Code::not_found) {
      report.missing.push_back(weights);
      report.missing_pieces += pieces.size();
      continue;
    }
    EXACT_RETURN_IF_ERROR(loaded);
    if (slot->digest() != weights) {
      return Status(Code::corrupt, "the weights that were found for digest " + weights.to_hex() +
                                       " have digest " + slot->digest().to_hex());
    }
    EXACT_ASSIGN(auto engine,
                 Engine::create(config, backend, std::move(slot), limits_for(run, pieces, random)));
    EXACT_RETURN_IF_ERROR(run_pieces(*engine, pieces, run, random, progress));
    EXACT_RETURN_IF_ERROR(compare_pieces(*engine, pieces, run, report));
    for (const size_t i : pieces) made[i] = true;
  }
  DigestStream recorded, replayed;
  for (size_t i = 0; i < plan.pieces.size(); i++) {
    if (!made[i]) continue;
    const Piece& piece = plan.pieces[i];
    add_recorded(recorded, samples[piece.sample], piece);
    add_replayed(replayed, samples[piece.sample], piece, run.results[i]);
  }
  report.recorded_digest = recorded.finish();
  report.replayed_digest = replayed.finish();
  std::ranges::stable_sort(report.findings, {}, &Finding::record_id);
  return report;
}

}  // namespace exact::replay
