// command_journal.cc owns `rollout journal`: looking into what a worker did.
#include <fmt/format.h>

#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/file.h"
#include "journal/record_json.h"
#include "worker/command.h"
#include "worker/journal_tensors.h"

namespace exact::worker {
namespace {

using Json = nlohmann::json;
using journal::Record;

struct JournalCommandOptions {
  std::string journal;
  bool json = false;
  uint64_t record = 0;
  std::string out;
  std::string format = "jsonl";
};

// Hands every record to `take` until that says false. Damage ends it: `verify` goes on behind.
Status for_each_record(const std::string& path, const std::function<Result<bool>(Record&)>& take) {
  EXACT_ASSIGN(journal::JournalReader reader, journal::JournalReader::open(path));
  while (true) {
    EXACT_ASSIGN(std::optional<Record> record, reader.next());
    if (!record) return {};
    EXACT_ASSIGN(const bool more, take(*record));
    if (!more) return {};
  }
}

struct Summary {
  std::string operator()(const journal::SessionRecord& r) const {
    return fmt::format("{} on {}, contract {}, model {}", r.program, r.backend, r.contract_id,
                       r.model);
  }
  std::string operator()(const journal::CompletionRecord& r) const {
    const ipc::Completion& made = r.completion;
    return fmt::format("client {}, seed {}, sample {}: {} + {} tokens, {}{}", r.client,
                       r.request.seed, made.sample_index, r.request.prompt.size(),
                       made.tokens.size(),
                       finish_reason_name(static_cast<FinishReason>(made.finish_reason)),
                       r.not_replayable.empty() ? "" : ", not replayable: " + r.not_replayable);
  }
  std::string operator()(const journal::UpdateRecord& r) const {
    return fmt::format("version {}, weights {}{}", r.weight_version, r.weights_digest,
                       r.at_start ? ", at the start" : "");
  }
  std::string operator()(const journal::ScoreRecord& r) const {
    return fmt::format("client {}: {} tokens, version {}", r.client, r.tokens.size(),
                       r.weight_version);
  }
  std::string operator()(const journal::DropRecord& r) const {
    return fmt::format("{} records are missing here", r.count);
  }
};

Status run_ls(const JournalCommandOptions& options) {
  return for_each_record(options.journal, [&](Record& record) -> Result<bool> {
    const std::string summary = std::visit(Summary(), record.body);
    const auto kind = journal::record_kind_name(kind_of(record));
    if (options.json) {
      const Json line = {{"record_id", record.id},    {"kind", std::string(kind)},
                         {"time_us", record.time_us}, {"path", record.path},
                         {"offset", record.offset},   {"bytes", record.bytes},
                         {"summary", summary}};
      fmt::print("{}\n", line.dump(-1, ' ', false, Json::error_handler_t::replace));
    } else {
      fmt::print("{:>10}  {:<10}  {}\n", record.id, kind, summary);
    }
    return true;
  });
}

Status run_show(const JournalCommandOptions& options) {
  bool found = false;
  EXACT_RETURN_IF_ERROR(for_each_record(options.journal, [&](Record& record) -> Result<bool> {
    // A session has the id of the record after it: both are shown.
    if (record.id == options.record) {
      const std::string line = record_json(record);
      fmt::print("{}\n", options.json ? line : Json::parse(line).dump(2));
      found = true;
    }
    return record.id <= options.record;
  }));
  if (found) return {};
  return {Code::not_found, "'" + options.journal + "' has no record " +
                               std::to_string(options.record) +
                               ": rollout journal ls says which it has"};
}

int run_verify(const JournalCommandOptions& options) {
  auto reader = journal::JournalReader::open(options.journal);
  if (!reader.is_ok()) return report(reader.status());
  std::map<std::string, uint64_t> counts;
  std::vector<std::string> problems;
  while (true) {
    auto record = reader->next();
    if (!record.is_ok()) {
      if (!journal::JournalReader::is_damage(record.status())) return report(record.status());
      problems.push_back(record.status().message());
      continue;
    }
    if (!record->has_value()) break;
    counts[std::string(journal::record_kind_name(kind_of(**record)))]++;
  }
  // A tail that was never written to its end is how a killed worker leaves a journal: no damage.
  const auto& torn = reader->torn_tail();
  if (options.json) {
    Json summary = {{"records", counts}, {"problems", problems}, {"torn_bytes", 0}};
    if (torn) summary["torn_bytes"] = torn->bytes;
    fmt::print("{}\n", summary.dump(-1, ' ', false, Json::error_handler_t::replace));
  } else {
    for (const std::string& problem : problems) fmt::print("damaged: {}\n", problem);
    if (torn) {
      fmt::print("torn tail: {} bytes at {} of '{}': a record that was never finished\n",
                 torn->bytes, torn->offset, torn->path);
    }
    for (const auto& [kind, count] : counts) fmt::print("{:<12} {}\n", kind, count);
    fmt::print("problems     {}\n", problems.size());
  }
  return problems.empty() ? kExitGood : kExitCheckFailed;
}

Status run_export(const JournalCommandOptions& options) {
  if (options.format == "safetensors") {
    JournalTensors tensors;
    EXACT_RETURN_IF_ERROR(for_each_record(options.journal, [&](Record& record) -> Result<bool> {
      if (const auto* made = std::get_if<journal::CompletionRecord>(&record.body)) {
        tensors.add(record.id, *made);
      }
      return true;
    }));
    return tensors.write(options.out);
  }
  EXACT_ASSIGN(AtomicFile file, AtomicFile::create(options.out));
  EXACT_RETURN_IF_ERROR(for_each_record(options.journal, [&](Record& record) -> Result<bool> {
    EXACT_RETURN_IF_ERROR(file.write(record_json(record) + "\n"));
    return true;
  }));
  return file.commit();
}

}  // namespace

void add_journal_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<JournalCommandOptions>();
  CLI::App* command =
      app.add_subcommand("journal", "Look into what `rollout serve --journal` wrote");
  command->require_subcommand(1);
  const auto add = [&](const char* name, const char* what) {
    CLI::App* action = command->add_subcommand(name, what);
    action->add_option("journal", options->journal, "Its directory, or one file of it")->required();
    action->add_flag("--json", options->json, "One JSON object a line");
    return action;
  };
  add("ls", "One line a record")->callback([options, &exit_code] {
    exit_code = report(run_ls(*options));
  });
  CLI::App* show = add("show", "All of one record");
  show->add_option("record", options->record, "Its id")->required();
  show->callback([options, &exit_code] { exit_code = report(run_show(*options)); });
  add("verify", "Read everything, damage included; exit code 1 where there is any")
      ->callback([options, &exit_code] { exit_code = run_verify(*options); });
  CLI::App* give = add("export", "Write all records as JSON lines, or completions as safetensors");
  give->add_option("--out", options->out, "The file")->required();
  give->add_option("--format", options->format, "jsonl or safetensors")
      ->check(CLI::IsMember({"jsonl", "safetensors"}))
      ->capture_default_str();
  give->callback([options, &exit_code] { exit_code = report(run_export(*options)); });
  command->footer("Example: rollout journal export journal --out journal.jsonl");
}

}  // namespace exact::worker
