// The example trainer as a stranger runs it: the program itself against a worker in this process.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "tests/worker/bridge_fixture.h"

namespace exact::bridge_tests {
namespace {

struct ProgramRun {
  int exit_code = -1;
  std::string output;  // both streams
};

ProgramRun run_trainer(const std::string& arguments) {
  const std::string command =
      std::string(EXACT_BINARY_DIR) + "/bin/trainer_loop " + arguments + " 2>&1";
  ProgramRun run;
  FILE* pipe = ::popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  if (pipe == nullptr) return run;
  char piece[512];
  while (std::fgets(piece, sizeof piece, pipe) != nullptr) run.output += piece;
  const int status = ::pclose(pipe);
  if (WIFEXITED(status)) run.exit_code = WEXITSTATUS(status);
  return run;
}

class TrainerLoop : public testing::Test {
 protected:
  void SetUp() override {
    const std::string config_path = scratch_.directory() + "/tiny.json";
    std::ofstream(config_path) << kTinyConfig;
    HashModelOptions options;
    options.seed = kSeed;
    const Status made = make_model(config_path, model(), options);
    ASSERT_TRUE(made.is_ok()) << made.to_string();
  }
  std::string model() const { return scratch_.directory() + "/model"; }
  ProgramRun train(const std::string& more) const {
    return run_trainer("--endpoint " + scratch_.name() + " --model " + model() + " " + more);
  }

  static constexpr uint64_t kSeed = 21;
  PrivateEndpoint scratch_;
};

TEST_F(TrainerLoop, EveryPolicyEndsWithEveryBitEqual) {
  const InProcessWorker worker(tiny_config(), kSeed, scratch_.name());
  for (const char* policy : {"wait", "recompute", "abort"}) {
    const ProgramRun run =
        train("--steps 3 --prompts 2 --n 2 --max-new-tokens 16 --policy " + std::string(policy));
    EXPECT_EQ(run.exit_code, 0) << policy << ":\n" << run.output;
    EXPECT_NE(run.output.find("3 weight versions published"), std::string::npos) << run.output;
    EXPECT_NE(run.output.find(": 0 differ."), std::string::npos) << run.output;
    EXPECT_NE(run.output.find("equal, bit for bit"), std::string::npos) << run.output;
  }
}

TEST_F(TrainerLoop, WorkerWithOtherFirstWeightsIsTrainedAllTheSame) {
  const InProcessWorker worker(tiny_config(), kSeed + 1, scratch_.name());
  const ProgramRun run = train("--steps 2 --prompts 1 --n 2 --max-new-tokens 8");
  EXPECT_EQ(run.exit_code, 0) << run.output;
}

TEST_F(TrainerLoop, WorkerWithAnotherModelFailsTheCheck) {
  ModelConfig other = tiny_config();
  other.layers = 1;
  const InProcessWorker worker(other, kSeed, scratch_.name());
  const ProgramRun run = train("--steps 1");
  EXPECT_EQ(run.exit_code, 1) << run.output;
  EXPECT_NE(run.output.find("contract"), std::string::npos) << run.output;
}

TEST_F(TrainerLoop, MissingModelAndBadUsageHaveTheirOwnExitCodes) {
  EXPECT_EQ(train("--steps 0").exit_code, 2);
  EXPECT_EQ(train("--policy sometimes").exit_code, 2);
  EXPECT_EQ(run_trainer("--steps 1").exit_code, 2);
  const ProgramRun help = run_trainer("--help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_NE(help.output.find("Example:"), std::string::npos) << help.output;
  const ProgramRun nothing = run_trainer("--model " + scratch_.directory() + "/nothing");
  EXPECT_EQ(nothing.exit_code, 3) << nothing.output;
}

}  // namespace
}  // namespace exact::bridge_tests
