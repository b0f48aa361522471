// command_version.cc owns `rollout version`: what this program is, for a bug report.
#include <fmt/format.h>

#include <string>

#include "kernels/contract/contract_id.h"
#include "kernels/cpu/cpu_backend.h"
#include "worker/command.h"
#include "worker/version.h"

namespace exact::worker {
namespace {

std::string isa_list() {
  std::string list;
  for (const CpuIsa isa : {CpuIsa::scalar, CpuIsa::avx2, CpuIsa::avx512}) {
    list += (list.empty() ? "" : ", ") + std::string(cpu_isa_name(isa)) +
            (cpu_isa_available(isa) ? "" : " (not on this machine)");
  }
  return list;
}

void print_version() {
  fmt::print("exact-rollout   {}\n", kVersion);
  fmt::print("contract rules  {} ({}, {}, {}, {})\n", contract::kRulesVersion, contract::kDevice,
             contract::kLinearForm, contract::kNormFormHf, contract::kAttentionForm);
  fmt::print("cpu backend     {}; auto is {}\n", isa_list(), cpu_isa_name(best_cpu_isa()));
  fmt::print("cuda parts      {}\n", EXACT_CUDA_PARTS);
}

}  // namespace

void add_version_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand(
      "version", "Version, rules of the contract, instruction sets, CUDA on or off");
  command->footer("Example: rollout version");
  command->callback([&exit_code] {
    print_version();
    exit_code = kExitGood;
  });
}

}  // namespace exact::worker
