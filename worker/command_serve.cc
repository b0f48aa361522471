// command_serve.cc owns `rollout serve`: it wires a model, a server, signals and the log together.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>

#include "ipc/endpoint.h"
#include "ipc/shm_region.h"
#include "worker/command.h"
#include "worker/input_watcher.h"
#include "worker/journal_options.h"
#include "worker/model_options.h"
#include "worker/server.h"
#include "worker/signals.h"
#include "worker/weights_keeper.h"

namespace exact::worker {
namespace {

struct ServeOptions {
  ModelOptions model;
  JournalOptions journal;
  std::string endpoint;
  uint64_t max_message_mib = ServerLimits().max_message_bytes >> 20;
  uint64_t max_unsent_mib = ServerLimits().max_unsent_bytes >> 20;
  uint64_t max_bucket_mib = ServerLimits().max_bucket_bytes >> 20;
  ServerLimits limits;
  std::string weights_store;  // a directory; empty: none
  std::string log_level = "info";
  bool until_input_ends = false;
};

std::shared_ptr<spdlog::logger> make_logger(const std::string& level) {
  auto logger = std::make_shared<spdlog::logger>(
      "rollout", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
  logger->set_level(spdlog::level::from_str(level));
  logger->flush_on(spdlog::level::debug);
  return logger;
}

LogSink sink_of(std::shared_ptr<spdlog::logger> logger) {
  return [logger = std::move(logger)](LogLevel level, std::string_view line) {
    switch (level) {
      case LogLevel::debug:
        return logger->debug("{}", line);
      case LogLevel::info:
        return logger->info("{}", line);
      case LogLevel::warning:
        return logger->warn("{}", line);
      case LogLevel::error:
        return logger->error("{}", line);
    }
  };
}

// What a killed worker left in shared memory. Without shared memory there are no weight updates,
// but rollouts are served all the same.
void sweep(const LogSink& log) {
  const Result<uint64_t> swept = ipc::sweep_dead_regions();
  if (!swept) {
    log(LogLevel::warning, "sweep_failed error=\"" + swept.status().message() + "\"");
  } else if (*swept > 0) {
    log(LogLevel::info, fmt::format("swept_dead_regions count={}", *swept));
  }
}

// The weights at the start are stored before anybody is served. Null where no store is wanted.
Result<std::unique_ptr<WeightsKeeper>> open_weights_store(const ServeOptions& options,
                                                          LoadedModel& model, const LogSink& log) {
  if (options.weights_store.empty()) return std::unique_ptr<WeightsKeeper>();
  EXACT_ASSIGN(WeightsStore store, WeightsStore::create(options.weights_store));
  auto keeper =
      std::make_unique<WeightsKeeper>(std::move(store), model.config, options.model.model);
  const EngineStatus status = model.engine->status();
  EXACT_RETURN_IF_ERROR(keeper->store_now(model.engine->live_weights(), status.version.value));
  log(LogLevel::info, fmt::format("weights_stored version={} weights_digest={}",
                                  status.version.value, status.weights_digest.to_hex()));
  return keeper;
}

Status run_serve(ServeOptions options) {
  block_termination_signals();  // before any thread is started
  const auto logger = make_logger(options.log_level);
  const LogSink log = sink_of(logger);
  sweep(log);
  EXACT_ASSIGN(LoadedModel model, load_model(options.model));
  EXACT_ASSIGN(const auto keeper, open_weights_store(options, model, log));
  EXACT_ASSIGN(const auto journal, open_journal(options.journal, options.model, model, log));

  ServerOptions server_options;
  server_options.endpoint = options.endpoint;
  server_options.backend_name = model.backend->name();
  server_options.device_uuid = model.backend->device_uuid();
  server_options.limits = options.limits;
  server_options.limits.max_message_bytes = options.max_message_mib << 20;
  server_options.limits.max_unsent_bytes = options.max_unsent_mib << 20;
  server_options.limits.max_bucket_bytes = options.max_bucket_mib << 20;
  server_options.log = log;
  server_options.weights_keeper = keeper.get();
  server_options.journal = journal.get();
  server_options.journal_full = journal_full(options.journal);
  EXACT_ASSIGN(const auto server, Server::create(*model.engine, server_options));
  const SignalWatcher signals([&](int count) { count == 1 ? server->drain() : server->stop(); });

  std::unique_ptr<InputWatcher> input;
  if (options.until_input_ends) {
    EXACT_ASSIGN(input, InputWatcher::start(STDIN_FILENO, [&] { server->stop(); }));
  }

  // What a script waits for is on standard output, and there at once.
  fmt::print("{}endpoint        {}\nready\n", describe(options.model, model), server->endpoint());
  std::fflush(stdout);
  const Status ended = server->run();
  if (journal == nullptr) return ended;
  const Status closed = journal->close();
  if (closed.is_ok()) {
    log(LogLevel::info, fmt::format("journal_closed last_record={}", journal->last_id()));
  } else {
    log(LogLevel::error, "journal_failed error=\"" + closed.message() + "\"");
  }
  return ended.is_ok() ? closed : ended;
}

void add_server_options(CLI::App& command, ServeOptions& options) {
  options.endpoint = ipc::default_endpoint();
  command
      .add_option("--bind", options.endpoint,
                  "Where clients connect: ipc:///path or tcp://127.0.0.1:PORT")
      ->capture_default_str();
  command.add_option("--max-message-mib", options.max_message_mib, "Largest message, either way")
      ->check(CLI::Range(1, 2047))
      ->capture_default_str();
  command
      .add_option("--max-unsent-mib", options.max_unsent_mib,
                  "What may wait for one client that reads slowly; beyond, it is dropped")
      ->check(CLI::Range(1, 1048576))
      ->capture_default_str();
  command
      .add_option("--max-bucket-mib", options.max_bucket_mib,
                  "Half of the shared memory of a weight update")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command.add_option("--max-clients", options.limits.max_clients, "Clients at a time")
      ->capture_default_str();
  command
      .add_option("--max-requests", options.limits.max_requests, "Unanswered requests of a client")
      ->capture_default_str();
  command
      .add_option("--heartbeat-ms", options.limits.heartbeat_ms,
                  "A client silent for three of these is taken for dead")
      ->capture_default_str();
  command
      .add_option("--update-timeout-ms", options.limits.update_timeout_ms,
                  "Longest wait between two messages of a weight update")
      ->capture_default_str();
  command.add_flag("--until-input-ends", options.until_input_ends,
                   "Stop at once when standard input ends: for a program that starts a worker and "
                   "shall not leave it behind");
  command.add_option(
      "--weights-store", options.weights_store,
      "Directory that keeps the weights of every version that goes live, for replay; "
      "an update waits until the one before is there");
  command.add_option("--log-level", options.log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
}

}  // namespace

void add_serve_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand(
      "serve",
      "Serve rollouts and scores to trainers, and take new weights from them while it runs.\n"
      "Prints \"ready\" on standard output when clients may connect; the log is on standard "
      "error.\n"
      "SIGTERM or SIGINT drains: no new work, what runs is finished and answered. A second one "
      "stops.");
  add_model_options(*command, options->model);
  add_server_options(*command, *options);
  add_journal_options(*command, options->journal);
  command->footer("Example: rollout serve --model model --bind ipc:///run/user/1000/worker.sock");
  command->callback([options, &exit_code] { exit_code = report(run_serve(*options)); });
}

}  // namespace exact::worker
