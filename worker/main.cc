// main.cc owns the program `rollout`: it reads the command line and hands over to one command.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>

#include "worker/command.h"
#include "worker/version.h"

int main(int argc, char** argv) {
  using namespace exact::worker;
  CLI::App app(
      "Exact rollouts for reinforcement learning of language models: every log-probability equals, "
      "bit for bit,\nthe forward pass of a stock PyTorch trainer on a Hopper GPU.");
  app.name("rollout");
  app.set_version_flag("--version", std::string(kVersion));
  app.require_subcommand(0, 1);  // none is answered below: CLI11 would hide a misspelt one
  app.footer(
      "Each command explains itself: rollout COMMAND --help\n"
      "Exit codes: 0 good, 1 a check failed (bits differ), 2 usage, 3 environment.");
  int exit_code = kExitGood;
  add_make_model_command(app, exit_code);
  add_serve_command(app, exit_code);
  add_generate_command(app, exit_code);
  add_score_command(app, exit_code);
  add_replay_command(app, exit_code);
  add_journal_command(app, exit_code);
  add_weights_command(app, exit_code);
  add_version_command(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitGood : kExitUsage;
  } catch (const std::exception& error) {
    fmt::print(stderr, "rollout: {}\n", error.what());
    return kExitEnvironment;
  }
  if (app.get_subcommands().empty()) {
    fmt::print(stderr, "rollout: say which command to run\n\n{}", app.help());
    return kExitUsage;
  }
  return exit_code;
}
