// command_replay.cc owns `rollout replay`: a journal's samples made again, and every bit compared.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/weights_store.h"
#include "kernels/make_backend.h"
#include "replay/replayer.h"
#include "worker/command.h"
#include "worker/progress.h"

namespace exact::worker {
namespace {

using nlohmann::json;

struct ReplayOptions {
  std::string journal;
  std::vector<std::string> models;
  std::string store;  // of weights; empty: none
  std::string backend = "auto", isa = "auto";
  int device = 0, threads = 0;
  std::string records;
  uint64_t sample = 0;
  uint64_t seed = 1;
  bool rerun = false;
  std::string json_path;
};

struct Range {
  uint64_t first = 0, last = std::numeric_limits<uint64_t>::max();
};

bool read_number(std::string_view text, uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// "A..B", both included, "A.." or "A".
Result<Range> read_range(const std::string& text) {
  Range range;
  if (text.empty()) return range;
  const size_t dots = text.find("..");
  const std::string first = text.substr(0, dots);
  const std::string last = dots == std::string::npos ? first : text.substr(dots + 2);
  const bool good =
      read_number(first, range.first) && (last.empty() || read_number(last, range.last));
  if (!good || range.first > range.last) {
    return Status(Code::invalid, "--records is '" + text + "'; write A..B, A.. or A, record ids");
  }
  return range;
}

// `count` of the samples, chosen by the seed, in their order.
void choose(std::vector<replay::RecordedSample>& samples, uint64_t count, uint64_t seed) {
  if (count == 0 || count >= samples.size()) return;
  const auto rank = [seed](const replay::RecordedSample& sample) {
    const uint64_t key[] = {seed, sample.record_id};
    return digest64(std::as_bytes(std::span(key)));
  };
  std::ranges::sort(samples, {}, rank);
  samples.resize(count);
  std::ranges::sort(samples, {}, &replay::RecordedSample::record_id);
}

json to_json(const replay::Difference& difference) {
  return {{"field", difference.field},
          {"token", difference.token},
          {"recorded_bits", fmt::format("{:08x}", difference.recorded)},
          {"replayed_bits", fmt::format("{:08x}", difference.replayed)},
          {"text", replay::describe(difference)}};
}

json to_json(const replay::Finding& finding) {
  json out = {{"record_id", finding.record_id},
              {"sample_index", finding.sample_index},
              {"mode", replay::mode_name(finding.mode)},
              {"difference", to_json(finding.difference)}};
  if (finding.located) {
    out["cause"] = replay::cause_of(finding);
    if (finding.located->first) out["forced_difference"] = to_json(*finding.located->first);
  }
  return out;
}

json to_json(const replay::Report& report) {
  json out = {{"pieces", report.pieces},
              {"tokens", report.tokens},
              {"missing_pieces", report.missing_pieces},
              {"recorded_digest", report.recorded_digest.to_hex()},
              {"replayed_digest", report.replayed_digest.to_hex()},
              {"differences", json::array()},
              {"missing_weights", json::array()}};
  for (const auto& finding : report.findings) out["differences"].push_back(to_json(finding));
  for (const auto& digest : report.missing) out["missing_weights"].push_back(digest.to_hex());
  return out;
}

constexpr size_t kMostPrinted = 20;

void print(const replay::Report& report, replay::Mode mode) {
  size_t printed = 0;
  for (const replay::Finding& finding : report.findings) {
    if (printed++ == kMostPrinted) {
      fmt::print("... and {} more: --json FILE has them all\n",
                 report.findings.size() - kMostPrinted);
      break;
    }
    fmt::print("differs         record {} sample {}, {}: {}\n", finding.record_id,
               finding.sample_index, replay::mode_name(mode), replay::describe(finding.difference));
    if (!finding.located) continue;
    if (finding.located->arithmetic_agrees) {
      fmt::print("                forced alone, its log-probabilities are equal: {}\n",
                 replay::cause_of(finding) == "sampling" ? "the sampling differs"
                                                         : "they depend on what runs beside it");
    } else {
      fmt::print("                the arithmetic differs; forced, {}\n",
                 replay::describe(*finding.located->first));
    }
  }
  for (const Digest128& digest : report.missing) {
    fmt::print("no weights      of digest {}: give its directory by --model, or a store\n",
               digest.to_hex());
  }
  fmt::print("{:<15} {} pieces, {} tokens: {} differ\n", replay::mode_name(mode), report.pieces,
             report.tokens, report.findings.size());
  fmt::print("outputs digest  recorded {}\n                replayed {}\n",
             report.recorded_digest.to_hex(), report.replayed_digest.to_hex());
}

void print_run(const replay::RecordedRun& run, const replay::Plan& plan) {
  for (const std::string& damage : run.damage) fmt::print("damage          {}\n", damage);
  if (!run.torn_tail.empty()) fmt::print("torn tail       {}\n", run.torn_tail);
  if (run.dropped > 0) fmt::print("dropped         {} records by the worker\n", run.dropped);
  fmt::print("journal         {} completions, {} updates, {} scores\n", run.samples.size(),
             run.updates, run.scores);
  for (const replay::Skipped& skipped : plan.skipped) {
    fmt::print("not replayed    record {} from token {}: {}\n",
               run.samples[skipped.sample].record_id, skipped.begin, skipped.why);
  }
}

Status write_json(const std::string& path, const json& summary) {
  if (path.empty()) return {};
  std::ofstream file(path);
  file << summary.dump(1) << "\n";
  file.flush();
  if (file.good()) return {};
  return Status(Code::device, "cannot write '" + path + "'");
}

json summary_of(const ReplayOptions& options, const replay::RecordedRun& run,
                const replay::Plan& plan, const Backend& backend) {
  json summary = {
      {"journal", options.journal},        {"backend", backend.name()}, {"seed", options.seed},
      {"completions", run.samples.size()}, {"dropped", run.dropped},    {"damage", run.damage},
      {"torn_tail", run.torn_tail},        {"skipped", json::array()},  {"runs", json::object()}};
  for (const replay::Skipped& skipped : plan.skipped) {
    summary["skipped"].push_back({{"record_id", run.samples[skipped.sample].record_id},
                                  {"from_token", skipped.begin},
                                  {"why", skipped.why}});
  }
  return summary;
}

// The directories given, and then the store.
class GivenWeights : public replay::WeightsSource {
 public:
  GivenWeights(std::vector<std::string> directories, std::optional<WeightsStore> store)
      : directories_(std::move(directories)), store_(std::move(store)) {}

  Status load(const Digest128& weights, WeightSlot& slot) override {
    const Status status = directories_.load(weights, slot);
    if (!store_ || status.code() != Code::not_found) return status;
    return store_->load(weights, slot);
  }

 private:
  replay::ModelDirectories directories_;
  std::optional<WeightsStore> store_;
};

// The config of the first model, or of the first version of the plan that the store has.
Result<ModelConfig> find_config(const ReplayOptions& options, const replay::Plan& plan,
                                const std::optional<WeightsStore>& store) {
  if (!options.models.empty()) return load_config(options.models.front());
  if (!store) return Status(Code::invalid, "say where the weights are: --model or --weights-store");
  for (const replay::Piece& piece : plan.pieces) {
    const auto model = store->manifest(piece.weights);
    if (!model.is_ok() && model.status().code() == Code::not_found) continue;
    if (!model.is_ok()) return model.status();
    EXACT_ASSIGN(const std::string directory, store->config_directory(*model));
    return load_config(directory);
  }
  return Status(Code::not_found,
                "'" + options.store + "' has none of the weights that the journal names");
}

Result<int> run_replay(const ReplayOptions& options) {
  EXACT_ASSIGN(const Range range, read_range(options.records));
  BackendOptions chosen;
  chosen.kind = options.backend;
  EXACT_ASSIGN(chosen.cpu.isa, cpu_isa_from_name(options.isa));
  chosen.cpu.threads = options.threads;
  chosen.cuda.device = options.device;
  EXACT_ASSIGN(replay::RecordedRun run, replay::read_run(options.journal, range.first, range.last));
  choose(run.samples, options.sample, options.seed);
  const replay::Plan plan = replay::make_plan(run.samples);
  print_run(run, plan);
  if (plan.pieces.empty()) {
    return Status(Code::invalid,
                  "'" + options.journal + "' has no sample here that can be replayed");
  }
  std::optional<WeightsStore> store;
  if (!options.store.empty()) {
    EXACT_ASSIGN(store, WeightsStore::open(options.store));
  }
  EXACT_ASSIGN(const ModelConfig config, find_config(options, plan, store));
  EXACT_ASSIGN(const auto backend, make_backend(chosen));
  fmt::print("backend         {}, {} threads\nseed            {}\n", backend->name(),
             backend->threads(), options.seed);
  json summary = summary_of(options, run, plan, *backend);
  std::vector<replay::Mode> modes = {replay::Mode::alone, replay::Mode::batches};
  if (options.rerun) modes = {replay::Mode::rerun};
  // What the journal has lost can't be called equal.
  int exit_code = run.damage.empty() ? kExitGood : kExitEnvironment;
  GivenWeights weights(options.models, store);
  for (const replay::Mode mode : modes) {
    Progress progress("replay " + std::string(replay::mode_name(mode)), plan.token_count, "tokens");
    EXACT_ASSIGN(const replay::Report report,
                 replay::run_plan(plan, run.samples, mode, options.seed, config, *backend, weights,
                                  [&](int64_t done) { progress.update(done); }));
    progress.finish();
    print(report, mode);
    summary["runs"][std::string(replay::mode_name(mode))] = to_json(report);
    if (report.missing_pieces > 0 && exit_code == kExitGood) exit_code = kExitEnvironment;
    if (!report.findings.empty()) exit_code = kExitCheckFailed;
  }
  summary["exit_code"] = exit_code;
  EXACT_RETURN_IF_ERROR(write_json(options.json_path, summary));
  return exit_code;
}

}  // namespace

void add_replay_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ReplayOptions>();
  CLI::App* command = app.add_subcommand(
      "replay",
      "Make the samples of a journal again and compare every bit: each alone, then in random\n"
      "batches. Where one differs, its ids are forced, to tell arithmetic from sampling.");
  command->add_option("JOURNAL", options->journal, "A journal's directory, or one segment of it")
      ->required();
  command->add_option("--model", options->models,
                      "Hugging Face directory; give one for each version of the weights");
  command->add_option("--weights-store", options->store,
                      "What `rollout serve --weights-store` wrote: has all versions");
  command->add_option("--backend", options->backend, "auto, cpu or cuda")->capture_default_str();
  command->add_option("--device", options->device, "GPU of the CUDA backend, counted from 0")
      ->capture_default_str();
  command->add_option("--isa", options->isa, "Of the CPU: auto, avx512, avx2 or scalar")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "CPU threads; 0: one for each usable core")
      ->capture_default_str();
  command->add_option("--records", options->records, "Record ids A..B, both included, A.. or A");
  command->add_option("--sample", options->sample, "Only so many completions, chosen by --seed");
  command->add_option("--seed", options->seed, "Of what is chosen, of order, batches and limits")
      ->capture_default_str();
  command->add_flag("--rerun", options->rerun,
                    "All requests at once, in another order and under other limits, and the digest "
                    "of all outputs");
  command->add_option("--json", options->json_path, "File to write a summary to");
  command->footer(
      "Exit codes: 0 all equal, 1 a bit differs, 2 usage, 3 environment: weights are missing,\n"
      "or the journal is damaged.\n"
      "Example: rollout replay journal --model model --sample 100 --json replay.json");
  command->callback([options, &exit_code] {
    const auto code = run_replay(*options);
    exit_code = code.is_ok() ? *code : report(code.status());
  });
}

}  // namespace exact::worker
