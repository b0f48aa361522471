// journal_options.h owns what `rollout serve` asks about its journal, and how it opens one.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "journal/async_journal.h"
#include "kernels/base/result.h"
#include "worker/model_options.h"
#include "worker/recorder.h"
#include "worker/server.h"

namespace exact::worker {

struct JournalOptions {
  std::string directory;  // empty: no journal
  std::string fsync = "interval";
  int32_t fsync_ms = journal::AsyncOptions().interval_ms;
  uint64_t segment_mib = journal::WriterOptions().segment_bytes >> 20;
  uint64_t max_mib = 0;  // 0: no limit
  std::string at_max = "stop";
  uint64_t queue_mib = journal::AsyncOptions().queue_bytes >> 20;
  std::string when_full = "block";
};

void add_journal_options(CLI::App& command, JournalOptions& options);

JournalFull journal_full(const JournalOptions& options);

// Opens the journal and records the weights that are live. Null where no directory is given. The
// log is told what was found, and what was cut.
Result<std::unique_ptr<journal::AsyncJournal>> open_journal(const JournalOptions& options,
                                                            const ModelOptions& model_options,
                                                            const LoadedModel& model,
                                                            const LogSink& log);

}  // namespace exact::worker
