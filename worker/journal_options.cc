#include "worker/journal_options.h"

#include <fmt/format.h>
#include <gnu/libc-version.h>

#include <fstream>
#include <iterator>
#include <random>
#include <utility>

#include "kernels/base/digest.h"
#include "worker/version.h"

namespace exact::worker {
namespace {

std::string config_digest(const std::string& model) {
  std::ifstream file(model + "/config.json", std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return digest128(text).to_hex();
}

journal::SessionRecord session_of(const ModelOptions& options, const LoadedModel& model) {
  journal::SessionRecord session;
  std::random_device random;
  session.session = (uint64_t{random()} << 32) | random();
  session.program = "exact-rollout " + std::string(kVersion);
  session.contract_id = model.engine->contract().to_hex();
  session.backend = model.backend->name();
  session.model = options.model;
  session.config_digest = config_digest(options.model);
  session.vocabulary = model.config.vocabulary;
  session.max_context = model.engine->limits().max_context;
  session.libraries = {{"compiler", __VERSION__},
                       {"glibc", ::gnu_get_libc_version()},
                       {"cuda parts", EXACT_CUDA_PARTS}};
  return session;
}

}  // namespace

void add_journal_options(CLI::App& command, JournalOptions& options) {
  command.add_option("--journal", options.directory,
                     "Directory that gets a record of every completion, score and weight update");
  command
      .add_option("--journal-fsync", options.fsync,
                  "each: a reply waits until its record is on disk; interval; none")
      ->check(CLI::IsMember({"each", "interval", "none"}))
      ->capture_default_str();
  command.add_option("--journal-fsync-ms", options.fsync_ms, "The interval")
      ->check(CLI::Range(1, 86'400'000))
      ->capture_default_str();
  command.add_option("--journal-segment-mib", options.segment_mib, "A new file after so much")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--journal-max-mib", options.max_mib, "All of it; 0: no limit")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  command
      .add_option("--journal-at-max", options.at_max,
                  "stop: the journal ends there; remove-oldest: its oldest files go")
      ->check(CLI::IsMember({"stop", "remove-oldest"}))
      ->capture_default_str();
  command
      .add_option("--journal-queue-mib", options.queue_mib,
                  "Records that may wait for the disk; beyond, the queue is full")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      .add_option("--journal-when-full", options.when_full,
                  "When the queue is full or the journal failed. block: new requests are refused; "
                  "drop: records are left out, counted and logged")
      ->check(CLI::IsMember({"block", "drop"}))
      ->capture_default_str();
}

JournalFull journal_full(const JournalOptions& options) {
  return options.when_full == "drop" ? JournalFull::drop : JournalFull::block;
}

Result<std::unique_ptr<journal::AsyncJournal>> open_journal(const JournalOptions& options,
                                                            const ModelOptions& model_options,
                                                            const LoadedModel& model,
                                                            const LogSink& log) {
  if (options.directory.empty()) return std::unique_ptr<journal::AsyncJournal>();
  journal::AsyncOptions async;
  async.writer.directory = options.directory;
  async.writer.segment_bytes = options.segment_mib << 20;
  async.writer.max_bytes = options.max_mib << 20;
  async.writer.remove_oldest = options.at_max == "remove-oldest";
  async.fsync = options.fsync == "each"   ? journal::Fsync::each
                : options.fsync == "none" ? journal::Fsync::none
                                          : journal::Fsync::interval;
  async.interval_ms = options.fsync_ms;
  async.queue_bytes = options.queue_mib << 20;
  EXACT_ASSIGN(auto opened, journal::AsyncJournal::open(async, session_of(model_options, model)));
  const journal::OpenReport& report = opened->report();
  if (!report.cut_from.empty()) {
    log(LogLevel::warning, fmt::format("journal_tail_cut bytes={} from={} kept_in={}",
                                       report.cut_bytes, report.cut_from, report.cut_into));
  }
  log(LogLevel::info,
      fmt::format("journal_open directory={} next_record={} segments={} bytes={} fsync={}",
                  options.directory, report.next_id, report.segments, report.bytes, options.fsync));
  const EngineStatus live = model.engine->status();
  journal::UpdateRecord start;
  start.weight_version = live.version.value;
  start.weights_digest = live.weights_digest.to_hex();
  start.at_start = true;
  start.model = model_options.model;
  EXACT_RETURN_IF_ERROR(opened->append_always(start).status());
  return opened;
}

}  // namespace exact::worker
