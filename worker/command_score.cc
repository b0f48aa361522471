// command_score.cc owns `rollout score`: the trainer's forward pass over a file of token ids.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "engine/sampling.h"
#include "worker/command.h"
#include "worker/model_options.h"
#include "worker/progress.h"

namespace exact::worker {
namespace {

struct ScoreOptions {
  ModelOptions model;
  std::string tokens;
  std::string out;
};

struct TokenRows {
  int64_t rows = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;  // (rows, length)
};

template <class Integer>
Status read_ids(const SafetensorsEntry& entry, const std::string& path, TokenRows& tokens) {
  for (size_t i = 0; i < tokens.ids.size(); i++) {
    Integer value;
    std::memcpy(&value, entry.bytes.data() + i * sizeof value, sizeof value);
    if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
      return Status(Code::invalid,
                    fmt::format("'{}': input_ids holds {}, which is not a token id", path, value));
    }
    tokens.ids[i] = static_cast<int32_t>(value);
  }
  return {};
}

Result<TokenRows> read_tokens(const std::string& path) {
  EXACT_ASSIGN(const SafetensorsFile file, SafetensorsFile::open(path));
  const SafetensorsEntry* entry = file.find("input_ids");
  if (entry == nullptr) {
    return Status(Code::invalid, "'" + path + "' has no tensor 'input_ids': add one, (B, L) int32");
  }
  if (entry->shape.size() != 2 || entry->shape[0] < 1 || entry->shape[1] < 2) {
    return Status(Code::invalid, "'" + path +
                                     "': input_ids must have shape (B, L) with B of at least 1 and "
                                     "L of at least 2");
  }
  const bool is_wide = entry->dtype == "I64";
  if (!is_wide && entry->dtype != "I32") {
    return Status(Code::invalid,
                  "'" + path + "': input_ids is " + entry->dtype + "; it must be I32 or I64");
  }
  TokenRows tokens{entry->shape[0], entry->shape[1], {}};
  tokens.ids.resize(entry->bytes.size() / (is_wide ? 8 : 4));
  EXACT_RETURN_IF_ERROR(is_wide ? read_ids<int64_t>(*entry, path, tokens)
                                : read_ids<int32_t>(*entry, path, tokens));
  return tokens;
}

// Row i is request i.
ScoreRequest request_of(const TokenRows& tokens, int64_t row) {
  const auto begin = tokens.ids.begin() + row * tokens.length;
  return {RequestId{static_cast<uint64_t>(row)}, {begin, begin + tokens.length}};
}

Result<std::vector<float>> score_rows(Engine& engine, const TokenRows& tokens) {
  for (int64_t row = 0; row < tokens.rows; row++) {
    const Status status = validate(request_of(tokens, row), engine.config(), engine.limits());
    if (!status.is_ok()) {
      return Status(status.code(), fmt::format("row {}: {}", row, status.message()));
    }
  }
  Progress progress("score", tokens.rows * (tokens.length - 1), "tokens");
  std::vector<float> logprobs(static_cast<size_t>(tokens.rows * (tokens.length - 1)));
  int64_t next = 0, computed = 0;
  while (next < tokens.rows || engine.has_work()) {
    // A few rows ahead of the engine is enough.
    while (next < tokens.rows && engine.status().waiting == 0) {
      EXACT_RETURN_IF_ERROR(engine.submit(request_of(tokens, next)));
      next++;
    }
    EXACT_ASSIGN(const StepReport step, engine.step());
    computed += step.prefill_rows;
    progress.update(computed);
    for (const ScoreResult& score : step.scores) {
      EXACT_RETURN_IF_ERROR(score.error);
      std::copy(score.logprobs.begin(), score.logprobs.end(),
                logprobs.begin() + static_cast<int64_t>(score.request.value) * (tokens.length - 1));
    }
  }
  progress.finish();
  return logprobs;
}

Status run_score(const ScoreOptions& options) {
  EXACT_ASSIGN(const TokenRows tokens, read_tokens(options.tokens));
  EXACT_ASSIGN(LoadedModel model, load_model(options.model));
  fmt::print("{}", describe(options.model, model));
  const auto begin = std::chrono::steady_clock::now();
  EXACT_ASSIGN(const std::vector<float> logprobs, score_rows(*model.engine, tokens));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;

  const SafetensorsOutput out{
      "logprobs", "F32", {tokens.rows, tokens.length - 1}, std::as_bytes(std::span(logprobs))};
  EXACT_RETURN_IF_ERROR(write_safetensors(options.out, std::span(&out, 1)));
  fmt::print("scored          {} sequences of {} tokens in {:.2f} s: {:.1f} tokens/s\n",
             tokens.rows, tokens.length, seconds.count(),
             static_cast<double>(tokens.ids.size()) / seconds.count());
  fmt::print("last logits     {:016x}\n", model.engine->last_logits_hash());
  return {};
}

}  // namespace

void add_score_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ScoreOptions>();
  CLI::App* command = app.add_subcommand(
      "score",
      "Log-probabilities of given tokens: the trainer's forward pass, bit for bit, without a GPU.\n"
      "Reads input_ids (B, L) int32, writes logprobs (B, L-1) float32: of each token after the "
      "first.");
  add_model_options(*command, options->model);
  command->add_option("--tokens", options->tokens, "Safetensors file with input_ids (B, L)")
      ->required();
  command->add_option("--out", options->out, "Safetensors file to write")->required();
  command->footer(
      "Example: rollout score --model model --tokens in.safetensors --out out.safetensors");
  command->callback([options, &exit_code] { exit_code = report(run_score(*options)); });
}

}  // namespace exact::worker
