// command.h owns what the commands share: exit codes, and how an error reaches the user. Each
// command registers itself with the command line and leaves its exit code in `exit_code`.
#pragma once

#include <CLI/CLI.hpp>
#include <string_view>

#include "kernels/base/result.h"

namespace exact::worker {

inline constexpr int kExitGood = 0;
inline constexpr int kExitCheckFailed = 1;  // bits differ
inline constexpr int kExitUsage = 2;        // the command line or an input file is wrong
inline constexpr int kExitEnvironment = 3;  // files, memory, sockets, hardware

// Prints "rollout: <sentence>" to standard error unless ok; the exit code that goes with it.
int report(const Status& status);

void add_make_model_command(CLI::App& app, int& exit_code);
void add_serve_command(CLI::App& app, int& exit_code);
void add_generate_command(CLI::App& app, int& exit_code);
void add_score_command(CLI::App& app, int& exit_code);
void add_replay_command(CLI::App& app, int& exit_code);
void add_journal_command(CLI::App& app, int& exit_code);
void add_weights_command(CLI::App& app, int& exit_code);
void add_version_command(CLI::App& app, int& exit_code);

}  // namespace exact::worker
