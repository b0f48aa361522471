// command_weights.cc owns `rollout weights`: looking after a store of weight versions.
#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/weights_store.h"
#include "journal/journal_reader.h"
#include "worker/command.h"
#include "worker/progress.h"

namespace exact::worker {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMiB = 1 << 20;

struct WeightsOptions {
  std::string store;
  bool json = false;
  double older_than_days = 0;
  std::vector<std::string> journals;  // what they name stays
  bool dry_run = false;
  std::string digest;
  std::string out;
};

// Draws nothing before the first byte.
class BytesBar {
 public:
  explicit BytesBar(std::string label) : label_(std::move(label)) {}
  BytesProgress callback() {
    return [this](int64_t done, int64_t total) {
      if (!bar_) bar_.emplace(label_, total / kMiB, "MiB");
      bar_->update(done / kMiB);
    };
  }
  void finish() {
    if (bar_) bar_->finish();
  }

 private:
  std::string label_;
  std::optional<Progress> bar_;
};

Status run_ls(const WeightsOptions& options) {
  EXACT_ASSIGN(const WeightsStore store, WeightsStore::open(options.store));
  EXACT_ASSIGN(const std::vector<Digest128> digests, store.list());
  for (const Digest128& digest : digests) {
    EXACT_ASSIGN(const StoredModel model, store.manifest(digest));
    uint64_t bytes = 0;
    for (const StoredTensor& tensor : model.tensors) bytes += tensor.bytes;
    if (options.json) {
      const Json line = {
          {"weights_digest", digest.to_hex()}, {"weight_version", model.weight_version},
          {"contract_id", model.contract_id},  {"stored_us", model.stored_us},
          {"tensors", model.tensors.size()},   {"bytes", bytes}};
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{}  version {:<6}  {:>6} tensors  {:>9.1f} MiB  stored_us {}\n", digest.to_hex(),
                 model.weight_version, model.tensors.size(), static_cast<double>(bytes) / kMiB,
                 model.stored_us);
    }
  }
  return {};
}

int run_verify(const WeightsOptions& options) {
  const Result<WeightsStore> store = WeightsStore::open(options.store);
  if (!store.is_ok()) return report(store.status());
  BytesBar bar("verify");
  const auto found = store->verify(bar.callback());
  bar.finish();
  if (!found.is_ok()) return report(found.status());
  if (options.json) {
    Json summary = {{"versions", found->models},
                    {"tensors", found->tensors},
                    {"bytes", found->bytes},
                    {"problems", Json::array()}};
    for (const auto& problem : found->problems) {
      summary["problems"].push_back(
          {{"file", problem.file}, {"error", problem.status.to_string()}});
    }
    fmt::print("{}\n", summary.dump(-1, ' ', false, Json::error_handler_t::replace));
  } else {
    for (const auto& problem : found->problems) fmt::print("{}\n", problem.status.to_string());
    fmt::print("{} versions, {} tensors, {} bytes read: {} problems\n", found->models,
               found->tensors, found->bytes, found->problems.size());
  }
  return found->problems.empty() ? kExitGood : kExitCheckFailed;
}

// Every version that a record of the journal names.
Status add_references(const std::string& path, std::set<Digest128>& referenced) {
  EXACT_ASSIGN(journal::JournalReader reader, journal::JournalReader::open(path));
  const auto add = [&referenced](const std::string& hex) {
    if (const auto digest = Digest128::from_hex(hex); digest.is_ok()) referenced.insert(*digest);
  };
  while (true) {
    // Damage ends it: what a damaged record named is not known, and would be lost.
    EXACT_ASSIGN(const std::optional<journal::Record> record, reader.next());
    if (!record) return {};
    if (const auto* made = std::get_if<journal::CompletionRecord>(&record->body)) {
      for (const ipc::VersionSpan& span : made->completion.versions) add(span.weights_digest);
    } else if (const auto* update = std::get_if<journal::UpdateRecord>(&record->body)) {
      add(update->weights_digest);
    } else if (const auto* score = std::get_if<journal::ScoreRecord>(&record->body)) {
      add(score->weights_digest);
    }
  }
}

Status run_gc(const WeightsOptions& options) {
  EXACT_ASSIGN(WeightsStore store, WeightsStore::open(options.store));
  const auto now = std::chrono::duration_cast<std::chrono::microseconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  const double age_us = options.older_than_days * 86'400e6;
  WeightsStore::CollectOptions collect;
  collect.dry_run = options.dry_run;
  collect.stored_before_us = age_us >= static_cast<double>(now)
                                 ? 0
                                 : static_cast<uint64_t>(now) - static_cast<uint64_t>(age_us);
  for (const std::string& path : options.journals) {
    EXACT_RETURN_IF_ERROR(add_references(path, collect.referenced));
  }
  EXACT_ASSIGN(const WeightsStore::Collected gone, store.collect_garbage(collect));
  if (options.json) {
    Json summary = {{"removed", Json::array()},
                    {"tensors", gone.tensors},
                    {"bytes", gone.bytes},
                    {"leftover", gone.leftover},
                    {"versions_left", gone.models_left},
                    {"dry_run", options.dry_run}};
    for (const Digest128& digest : gone.models) summary["removed"].push_back(digest.to_hex());
    fmt::print("{}\n", summary.dump());
    return {};
  }
  for (const Digest128& digest : gone.models) fmt::print("{}\n", digest.to_hex());
  fmt::print("{}: {} versions, {} tensors, {} unfinished files, {} bytes; {} versions stay\n",
             options.dry_run ? "would remove" : "removed", gone.models.size(), gone.tensors,
             gone.leftover, gone.bytes, gone.models_left);
  return {};
}

Status run_export(const WeightsOptions& options) {
  EXACT_ASSIGN(const WeightsStore store, WeightsStore::open(options.store));
  const Result<Digest128> digest = Digest128::from_hex(options.digest);
  if (!digest.is_ok()) return {Code::invalid, "--weights: " + digest.status().message()};
  BytesBar bar("export");
  EXACT_RETURN_IF_ERROR(store.export_model(*digest, options.out, bar.callback()));
  bar.finish();
  if (options.json) {
    fmt::print("{}\n", Json{{"model", options.out}, {"weights_digest", options.digest}}.dump());
  } else {
    fmt::print("model           {}\nweights         {}\n", options.out, options.digest);
  }
  return {};
}

}  // namespace

void add_weights_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<WeightsOptions>();
  CLI::App* command = app.add_subcommand(
      "weights", "Look after a store that `rollout serve --weights-store` fills");
  command->require_subcommand(1);
  const auto add = [&](const char* name, const char* what) {
    CLI::App* action = command->add_subcommand(name, what);
    action->add_option("store", options->store, "The store's directory")->required();
    action->add_flag("--json", options->json, "One JSON object a line");
    return action;
  };
  add("ls", "The versions that are there")->callback([options, &exit_code] {
    exit_code = report(run_ls(*options));
  });
  add("verify", "Read everything and compare digests; exit code 1 where one is wrong")
      ->callback([options, &exit_code] { exit_code = run_verify(*options); });
  CLI::App* gc = add("gc", "Remove old versions, and tensors that no version needs any more");
  gc->add_option("--older-than-days", options->older_than_days,
                 "Versions stored in the last so many days stay, and so does the last one")
      ->required()
      ->check(CLI::Range(0.0, 1e6));
  gc->add_option("--journal", options->journals,
                 "Versions that this journal's records name stay; may be given several times");
  gc->add_flag("--dry-run", options->dry_run, "Only say what would go");
  gc->callback([options, &exit_code] { exit_code = report(run_gc(*options)); });
  CLI::App* give = add("export", "Write a version as a Hugging Face directory");
  give->add_option("--weights", options->digest, "Its digest, as ls prints it")->required();
  give->add_option("--out", options->out, "A new directory")->required();
  give->callback([options, &exit_code] { exit_code = report(run_export(*options)); });
  command->footer("Example: rollout weights gc store --older-than-days 7 --journal journal");
}

}  // namespace exact::worker
