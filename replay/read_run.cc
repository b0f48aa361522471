// read_run.cc owns the way from a journal's records to samples that know their session and updates.
#include <map>
#include <utility>

#include "journal/journal_reader.h"
#include "replay/plan.h"

namespace exact::replay {
namespace {

// What the records so far say of those to come.
struct Context {
  journal::SessionRecord session;
  std::map<uint64_t, uint8_t> policies;  // by version, of this session's updates
};

void begin_session(Context& context, journal::SessionRecord session) {
  // Segments of one run share their session, and its versions.
  if (session.session != context.session.session) context.policies.clear();
  context.session = std::move(session);
}

void add_sample(RecordedRun& run, const Context& context, uint64_t id,
                journal::CompletionRecord record) {
  RecordedSample sample;
  sample.record_id = id;
  sample.contract_id = context.session.contract_id;
  sample.max_context = context.session.max_context;
  for (size_t i = 1; i < record.completion.versions.size(); i++) {
    const auto found = context.policies.find(record.completion.versions[i].weight_version);
    sample.policies.push_back(found == context.policies.end() ? kUnknownPolicy : found->second);
  }
  sample.record = std::move(record);
  run.samples.push_back(std::move(sample));
}

}  // namespace

Result<RecordedRun> read_run(const std::string& path, uint64_t first_id, uint64_t last_id) {
  EXACT_ASSIGN(journal::JournalReader reader, journal::JournalReader::open(path));
  RecordedRun run;
  Context context;
  for (;;) {
    auto next = reader.next();
    if (!next) {
      if (!journal::JournalReader::is_damage(next.status())) return next.status();
      run.damage.push_back(next.status().message());
      continue;
    }
    if (!*next) break;
    journal::Record& record = **next;
    if (auto* session = std::get_if<journal::SessionRecord>(&record.body)) {
      begin_session(context, std::move(*session));
    } else if (const auto* update = std::get_if<journal::UpdateRecord>(&record.body)) {
      if (!update->at_start) context.policies[update->weight_version] = update->policy;
      run.updates++;
    } else if (const auto* drops = std::get_if<journal::DropRecord>(&record.body)) {
      run.dropped += drops->count;
    } else if (std::holds_alternative<journal::ScoreRecord>(record.body)) {
      run.scores++;
    } else if (auto* completion = std::get_if<journal::CompletionRecord>(&record.body)) {
      if (record.id < first_id || record.id > last_id) continue;
      add_sample(run, context, record.id, std::move(*completion));
    }
  }
  if (const auto& torn = reader.torn_tail()) {
    run.torn_tail = "'" + torn->path + "' ends in " + std::to_string(torn->bytes) +
                         " bytes of a record that was never written to its end: " + torn->why;
  }
  return run;
}

}  // namespace exact::replay
