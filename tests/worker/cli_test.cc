// The program `rollout` as a user meets it: exit codes, sentences, files, signals.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/safetensors.h"
#include "tests/support/expect_bits.h"
#include "tests/support/golden.h"
#include "tests/worker/program.h"
#include "tests/worker/update_steps.h"
#include "tests/worker/worker_fixture.h"

namespace exact::worker_tests {
namespace {

void expect_end(const std::vector<std::string>& arguments, int exit_code,
                const std::string& words) {
  const ProgramEnd end = run_program(arguments);
  EXPECT_EQ(end.exit_code, exit_code) << end.out << end.err;
  EXPECT_NE((end.out + end.err).find(words), std::string::npos)
      << "'" << words << "' is not said in: " << end.out << end.err;
}

// A tiny model, made once by the program itself.
class CommandLine : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new ScratchDirectory;
    write_text(*directory_ / "config.json", bridge_tests::kTinyConfig);
    expect_end({"make-model", "--config", *directory_ / "config.json", "--seed",
                std::to_string(kFirstSeed), "--out", model()},
               0, "contract id");
  }
  static void TearDownTestSuite() {
    delete directory_;
    directory_ = nullptr;
  }
  static std::string model() { return *directory_ / "model"; }
  static std::vector<std::string> with(std::vector<std::string> words,
                                       const std::vector<std::string>& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  ScratchDirectory scratch_;

 private:
  static ScratchDirectory* directory_;
};
ScratchDirectory* CommandLine::directory_ = nullptr;

TEST_F(CommandLine, HelpOfEveryCommandIsGoodAndHasAnExample) {
  expect_end({"--help"}, 0, "Exit codes");
  expect_end({"--version"}, 0, "0.");
  for (const std::string command : {"make-model", "serve", "generate", "score", "version"}) {
    expect_end({command, "--help"}, 0, "Example: rollout " + command);
  }
}

TEST_F(CommandLine, WrongUsageIsTwo) {
  expect_end({}, 2, "which command");
  expect_end({"frobnicate"}, 2, "frobnicate");
  expect_end({"serve"}, 2, "--model");
  expect_end({"serve", "--model", model(), "--frobnicate"}, 2, "--frobnicate");
  expect_end({"serve", "--model", model(), "--threads", "many"}, 2, "many");
  expect_end({"serve", "--model", model(), "--isa", "sse"}, 2, "sse");
  expect_end({"serve", "--model", model(), "--backend", "tpu"}, 2, "tpu");
  expect_end({"serve", "--model", model(), "--page-size", "17"}, 2, "page_size");
  expect_end({"serve", "--model", model(), "--heartbeat-ms", "0"}, 2, "heartbeat_ms");
  expect_end({"serve", "--model", model(), "--bind", "carrier://pigeon"}, 2, "carrier://pigeon");
}

TEST_F(CommandLine, MissingEnvironmentIsThree) {
  expect_end({"serve", "--model", scratch_ / "nowhere"}, 3, "nowhere");
  expect_end({"serve", "--model", model(), "--backend", "cuda", "--device", "99"}, 3,
             "--backend cpu");
  expect_end({"serve", "--model", model(), "--bind", "tcp://192.0.2.1:5555"}, 3, "loopback");
  expect_end(
      {"make-model", "--config", scratch_ / "none.json", "--seed", "1", "--out", scratch_ / "out"},
      3, "none.json");
  expect_end(
      {"generate", "--model", model(), "--prompts", scratch_ / "none", "--out", scratch_ / "out"},
      3, "none");
}

TEST_F(CommandLine, VersionNamesTheRulesAndInstructionSets) {
  const ProgramEnd end = run_program({"version"});
  EXPECT_EQ(end.exit_code, 0);
  for (const char* words : {"exact-rollout-rules-1", "scalar", "avx2", "avx512", "cuda parts"}) {
    EXPECT_NE(end.out.find(words), std::string::npos) << words << " in " << end.out;
  }
}

TEST_F(CommandLine, MakeModelTwiceGivesTheSameBytes) {
  for (const std::string out : {"a", "b", "b"}) {
    expect_end({"make-model", "--config", model() + "/config.json", "--seed", "5", "--out",
                scratch_ / out},
               0, "contract id");
  }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(scratch_ / "a")) {
    const std::string name = entry.path().filename();
    EXPECT_EQ(text_of(entry.path()), text_of(scratch_ / ("b/" + name))) << name;
    files++;
  }
  EXPECT_GE(files, 2);
  EXPECT_NE(text_of(scratch_ / "a/model.safetensors"), text_of(model() + "/model.safetensors"));
}

TEST_F(CommandLine, ScoreEqualsTheGoldenOfStockPyTorch) {
  constexpr int64_t kRows = 2;
  const std::string golden_directory = EXACT_GOLDEN_DIR "/qwen3-d64";
  const GoldenFile golden("qwen3-d64/golden.safetensors");
  expect_end({"make-model", "--config", golden_directory + "/config.json", "--seed", "11", "--out",
              scratch_ / "model"},
             0, "contract id");
  const int64_t length = golden.shape("input_ids").at(1);
  std::vector<int32_t> ids = golden.values<int32_t>("input_ids");
  ids.resize(static_cast<size_t>(kRows * length));
  const SafetensorsOutput input{"input_ids", "I32", {kRows, length}, std::as_bytes(std::span(ids))};
  ASSERT_TRUE(write_safetensors(scratch_ / "in", std::span(&input, 1)).is_ok());
  expect_end({"score", "--model", scratch_ / "model", "--tokens", scratch_ / "in", "--out",
              scratch_ / "out"},
             0, "tokens/s");

  const auto file = SafetensorsFile::open(scratch_ / "out");
  ASSERT_TRUE(file.is_ok()) << file.status().to_string();
  const SafetensorsEntry* entry = file->find("logprobs");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(entry->dtype, "F32");
  EXPECT_EQ(entry->shape, (std::vector<int64_t>{kRows, length - 1}));
  std::vector<float> got(entry->bytes.size() / 4);
  std::memcpy(got.data(), entry->bytes.data(), entry->bytes.size());
  std::vector<float> want = golden.values<float>("logprobs");
  want.resize(got.size());
  EXPECT_BITS_EQ(got, want, "qwen3-d64, first two sequences");
}

TEST_F(CommandLine, ScoreTakesWideIdsAndRefusesOthersByName) {
  const auto score = [&](const SafetensorsOutput& input, int exit_code, const std::string& words) {
    ASSERT_TRUE(write_safetensors(scratch_ / "in", std::span(&input, 1)).is_ok());
    expect_end(
        {"score", "--model", model(), "--tokens", scratch_ / "in", "--out", scratch_ / "out"},
        exit_code, words);
  };
  const std::vector<int64_t> wide{1, 2, 3, 4, 5, 6};
  const std::vector<int64_t> outside{1, 2, 3, 4, int64_t{1} << 40, 6};
  const std::vector<int64_t> beyond{1, 2, 3, 4, 255, 256};
  const std::vector<float> floats{1, 2};
  score({"input_ids", "I64", {2, 3}, std::as_bytes(std::span(wide))}, 0, "scored");
  score({"input_ids", "I64", {2, 3}, std::as_bytes(std::span(outside))}, 2, "not a token id");
  score({"input_ids", "I64", {2, 3}, std::as_bytes(std::span(beyond))}, 2, "row 1");
  score({"input_ids", "I64", {6}, std::as_bytes(std::span(wide))}, 2, "shape (B, L)");
  score({"input_ids", "F32", {1, 2}, std::as_bytes(std::span(floats))}, 2, "I32 or I64");
  score({"ids", "I64", {2, 3}, std::as_bytes(std::span(wide))}, 2, "'input_ids'");
}

TEST_F(CommandLine, GenerateGivesTheSameBytesWhateverTheSchedule) {
  write_text(scratch_ / "in",
             "{\"prompt\": [1, 2, 3], \"n\": 3, \"seed\": 7, \"id\": \"a\"}\n\n"
             "{\"prompt\": [9], \"temperature\": 0, \"id\": 2}\n"
             "{\"prompt\": [4, 5], \"top_k\": 5, \"top_p\": 0.9, \"max_new_tokens\": 9}\n");
  const std::vector<std::string> base{"generate", "--model", model(), "--prompts", scratch_ / "in"};
  const std::vector<std::vector<std::string>> schedules{
      {"--threads", "1"},
      {"--threads", "2", "--max-running", "1"},
      {"--page-size", "16", "--pages", "20", "--max-context", "256", "--swap-mib", "4",
       "--row-cost-bytes", "1"},
      {"--isa", "scalar", "--page-size", "16", "--max-step-tokens", "3", "--no-prefix-reuse"}};
  std::string first;
  for (const auto& schedule : schedules) {
    expect_end(with(with(base, {"--out", scratch_ / "out", "--max-new-tokens", "20"}), schedule), 0,
               "tokens/s");
    const std::string text = text_of(scratch_ / "out");
    if (first.empty()) first = text;
    EXPECT_EQ(text, first) << schedule[1];
  }
  std::istringstream lines(first);
  std::vector<nlohmann::json> samples;
  for (std::string line; std::getline(lines, line);) {
    samples.push_back(nlohmann::json::parse(line));
  }
  ASSERT_EQ(samples.size(), 5u);
  EXPECT_EQ(samples[0]["id"], "a");
  EXPECT_EQ(samples[2]["sample_index"], 2);
  EXPECT_EQ(samples[3]["id"], 2);
  EXPECT_TRUE(samples[4]["id"].is_null());
  EXPECT_EQ(samples[0]["ids"].size(), 20u);
  EXPECT_EQ(samples[4]["ids"].size(), 9u);
  EXPECT_EQ(samples[4]["logprobs"].size(), 9u);
  EXPECT_EQ(samples[0]["versions"][0]["weights_digest"], samples[0]["weights_digest"]);
}

// What an option says as a default, a line may say by itself: the same bytes.
TEST_F(CommandLine, OptionsAndLinesSayTheSame) {
  write_text(scratch_ / "plain", "{\"prompt\": [1, 2, 3]}\n");
  write_text(scratch_ / "full",
             "{\"prompt\": [1, 2, 3], \"n\": 2, \"seed\": 7, \"max_new_tokens\": 20, "
             "\"min_new_tokens\": 2, \"temperature\": 0.9, \"top_k\": 50, \"top_p\": 0.95, "
             "\"min_p\": 0.01, \"repetition_penalty\": 1.1, \"presence_penalty\": -0.5, "
             "\"frequency_penalty\": 0.25, \"logit_bias\": {\"17\": -2.5, \"18\": 1}, "
             "\"allowed_ids\": [17, 18, 19, 20, 21], \"banned_ids\": [21], \"stop_ids\": [5], "
             "\"stop_sequences\": [[18, 18], [19, 19, 19]], \"ignore_eos\": true, "
             "\"forced_ids\": [19], \"top_logprobs\": 3, \"entropy\": true, \"kept_set\": true, "
             "\"prompt_logprobs\": true, \"priority\": 2}\n");
  const std::vector<std::string> base{"generate", "--model", model(), "--out", scratch_ / "out"};
  expect_end(with(base, {"--prompts", scratch_ / "full"}), 0, "tokens/s");
  const std::string by_line = text_of(scratch_ / "out");
  expect_end(with(base, {"--prompts",
                         scratch_ / "plain",
                         "--n",
                         "2",
                         "--seed",
                         "7",
                         "--max-new-tokens",
                         "20",
                         "--min-new-tokens",
                         "2",
                         "--temperature",
                         "0.9",
                         "--top-k",
                         "50",
                         "--top-p",
                         "0.95",
                         "--min-p",
                         "0.01",
                         "--repetition-penalty",
                         "1.1",
                         "--presence-penalty",
                         "-0.5",
                         "--frequency-penalty",
                         "0.25",
                         "--logit-bias",
                         "17:-2.5",
                         "--logit-bias",
                         "18:1",
                         "--allowed-id",
                         "17",
                         "18",
                         "19",
                         "20",
                         "21",
                         "--banned-id",
                         "21",
                         "--stop-id",
                         "5",
                         "--stop-sequence",
                         "18,18",
                         "--stop-sequence",
                         "19,19,19",
                         "--ignore-eos",
                         "--forced-id",
                         "19",
                         "--top-logprobs",
                         "3",
                         "--entropy",
                         "--kept-set",
                         "--prompt-logprobs",
                         "--priority",
                         "2"}),
             0, "tokens/s");
  EXPECT_EQ(text_of(scratch_ / "out"), by_line);
  const auto first = nlohmann::json::parse(by_line.substr(0, by_line.find('\n')));
  const size_t tokens = first["ids"].size();
  EXPECT_EQ(first["ids"][0], 19);
  EXPECT_EQ(first["entropies"].size(), tokens);
  EXPECT_EQ(first["top_ids"].size(), tokens);
  EXPECT_EQ(first["top_logprobs"][0].size(), 3u);
  EXPECT_EQ(first["prompt_logprobs"].size(), 2u);
  for (const auto& kept : first["kept_ids"]) {
    for (const int id : kept) EXPECT_TRUE(id >= 17 && id <= 20) << id;
  }
  expect_end(with(base, {"--prompts", scratch_ / "plain", "--logit-bias", "x"}), 2, "TOKEN:BIAS");
  expect_end(with(base, {"--prompts", scratch_ / "plain", "--stop-sequence", "1,,2"}), 2,
             "--stop-sequence");
}

TEST_F(CommandLine, BadPromptIsRefusedWithItsLineNumberAndNothingIsWritten) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"{\"prompt\": [1}", "not valid JSON"},
      {"[1, 2]", "not an object"},
      {"{\"n\": 1}", "'prompt' is missing"},
      {"{\"prompt\": [1], \"temprature\": 1}", "unknown field 'temprature'"},
      {"{\"prompt\": [1], \"max_tokens\": 1}", "here it is 'max_new_tokens'"},
      {"{\"prompt\": [1], \"entropy\": 1}", "'entropy' must be true or false"},
      {"{\"prompt\": [1], \"stop_sequences\": [1]}", "'stop_sequences' must be a list of lists"},
      {"{\"prompt\": [1], \"logit_bias\": {\"a\": 1}}", "'logit_bias' must be an object"},
      {"{\"prompt\": [1], \"min_p\": 2}", "min_p"},
      {"{\"prompt\": [1.5]}", "'prompt' must be a list of token ids"},
      {"{\"prompt\": [99999999999]}", "'prompt' must be a list of token ids"},
      {"{\"prompt\": [1], \"n\": \"2\"}", "'n' must be a whole number"},
      {"{\"prompt\": [1], \"seed\": -1}", "'seed' must be a whole number"},
      {"{\"prompt\": [1], \"top_p\": 2}", "top_p"},
      {"{\"prompt\": [256]}", "prompt"},
      {"{\"prompt\": []}", "prompt"}};
  for (const auto& [line, words] : cases) {
    write_text(scratch_ / "in", "{\"prompt\": [1]}\n\n" + line + "\n");
    const ProgramEnd end = run_program(
        {"generate", "--model", model(), "--prompts", scratch_ / "in", "--out", scratch_ / "out"});
    EXPECT_EQ(end.exit_code, 2) << line << end.err;
    EXPECT_NE(end.err.find("line 3"), std::string::npos) << end.err;
    EXPECT_NE(end.err.find(words), std::string::npos) << end.err;
    EXPECT_FALSE(std::filesystem::exists(scratch_ / "out"));
  }
}

class Serve : public CommandLine {
 protected:
  std::vector<std::string> arguments(const std::vector<std::string>& more = {}) {
    return with({"serve", "--model", model(), "--bind", endpoint_.name(), "--backend", "cpu",
                 "--threads", "1"},
                more);
  }
  bridge_tests::PrivateEndpoint endpoint_;
};

// Long enough to be under way when the signal comes.
#if defined(__SANITIZE_THREAD__)
constexpr int32_t kDrainedTokens = 50;
#else
constexpr int32_t kDrainedTokens = 500;
#endif

TEST_F(Serve, TermSignalDrains) {
  Program program(scratch_, arguments());
  ASSERT_TRUE(program.says("ready")) << program.err();
  for (const char* words : {"contract id", "weights digest", "endpoint", "cpu-"}) {
    EXPECT_NE(program.out().find(words), std::string::npos) << words;
  }
  RawClient client(endpoint_.name()), second(endpoint_.name());
  client.hello();
  second.hello();
  const uint64_t id = client.post(generate({1, 2, 3}, kDrainedTokens, 5, 64));
  ASSERT_TRUE(eventually([&] { return second.status().running > 0; }));
  program.signal(SIGTERM);
  ASSERT_TRUE(program.says("draining"));
  expect_error(second.call<ipc::GenerateReply>(generate({1}, 4, 1)).status(), Code::exhausted,
               "draining");
  const auto reply = client.take<ipc::GenerateReply>(id);
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  for (const auto& completion : reply->completions) {
    EXPECT_EQ(completion.tokens.size(), size_t{kDrainedTokens});
  }
  EXPECT_EQ(program.wait(), 0) << program.err();
  EXPECT_NE(program.err().find("drained"), std::string::npos) << program.err();
}

TEST_F(Serve, SecondSignalStopsAtOnce) {
  Program program(scratch_, arguments({"--max-running", "1", "--max-step-tokens", "1"}));
  ASSERT_TRUE(program.says("ready")) << program.err();
  RawClient client(endpoint_.name());
  client.hello();
  for (uint64_t i = 0; i < 1000; i++) client.post(generate({1, 2, 3}, 500, i, 4));
  program.signal(SIGINT);
  ASSERT_TRUE(program.says("draining"));
  program.signal(SIGTERM);
  EXPECT_EQ(program.wait(), 0) << program.err();
  EXPECT_NE(program.err().find("stopped"), std::string::npos) << program.err();
}

TEST_F(Serve, SecondWorkerOnOneEndpointIsRefused) {
  Program program(scratch_, arguments());
  ASSERT_TRUE(program.says("ready")) << program.err();
  expect_end(arguments(), 2, "another process serves");
}

TEST_F(Serve, StartAfterAKilledWorkerSweepsWhatItLeft) {
  std::string segment;
  {
    Program program(scratch_, arguments());
    ASSERT_TRUE(program.says("ready")) << program.err();
    RawClient client(endpoint_.name());
    client.hello();
    UpdateSteps steps(client, bridge_tests::tiny_config(), 2);
    ASSERT_TRUE(steps.begin().is_ok());
    segment = steps.ready.segment_name;
    program.signal(SIGKILL);
    EXPECT_EQ(program.wait(), -SIGKILL);
  }
  EXPECT_TRUE(segment_exists(segment));
  Program program(scratch_, arguments());
  ASSERT_TRUE(program.says("ready")) << program.err();
  EXPECT_FALSE(segment_exists(segment));
  RawClient client(endpoint_.name());
  client.hello();
  EXPECT_TRUE(client.call<ipc::GenerateReply>(generate({1}, 4, 1)).is_ok());
}

}  // namespace
}  // namespace exact::worker_tests
