#include "tests/faults/faulty_worker.h"

#include <algorithm>
#include <fstream>

#include "ipc/bucket_plan.h"
#include "tests/support/expect_bits.h"

namespace exact::fault_tests {

using std::chrono::milliseconds;
using worker_tests::eventually;
using worker_tests::RawClient;

namespace {

const std::vector<int32_t> kProbe{1, 2, 3, 5, 8, 13, 21, 34, 55, 89};

}  // namespace

FaultyWorker::FaultyWorker(int update_timeout_ms)
    : endpoint_name_("ipc://" + (scratch_ / "worker.sock")), update_timeout_ms_(update_timeout_ms) {
  worker_tests::write_text(scratch_ / "config.json", bridge_tests::kTinyConfig);
  const auto made = worker_tests::run_program({"make-model", "--config", scratch_ / "config.json",
                                               "--seed", "1", "--out", scratch_ / "model"});
  EXPECT_EQ(made.exit_code, 0) << made.err;
  start();
}

void FaultyWorker::start() {
  program_ = std::make_unique<worker_tests::Program>(
      scratch_, std::vector<std::string>{
                    "serve", "--model", scratch_ / "model", "--bind", endpoint_name_, "--threads",
                    "1", "--max-context", "256", "--pages", "300", "--heartbeat-ms", "60000",
                    "--update-timeout-ms", std::to_string(update_timeout_ms_)});
  ASSERT_TRUE(program_->says("ready\n")) << program_->err();
  client_ = std::make_unique<RawClient>(endpoint_name_);
  client_->hello();
  rollouts_ = bridge_tests::connect(endpoint_name_);
  ASSERT_NE(rollouts_, nullptr);
}

void FaultyWorker::kill_and_restart() {
  program_.reset();  // SIGKILL
  // What it had promised went with it; what it had said stays checked.
  rollouts_.reset();
  prompts_.clear();
  start();
}

uint64_t FaultyWorker::bucket_count() {
  uint64_t bytes = 0;
  for (const TensorSpec& spec : tensor_table(config_)) bytes += static_cast<uint64_t>(spec.bytes());
  return ipc::BucketPlan{bytes, kBucketBytes}.bucket_count();
}

void FaultyWorker::keep_busy(size_t requests, int32_t max_new_tokens) {
  while (rollouts_->in_flight() < requests) {
    const uint64_t seed = ++submitted_;
    const std::vector<int32_t> prompt{2, 4, 6, static_cast<int32_t>(seed % 200)};
    const auto id = rollouts_->submit(worker_tests::generate(prompt, max_new_tokens, seed));
    ASSERT_TRUE(id.is_ok()) << id.status().to_string();
    prompts_[*id] = prompt;
  }
}

void FaultyWorker::collect(bool all) {
  while (rollouts_->in_flight() > 0) {
    const auto reply = rollouts_->next_reply(milliseconds(all ? 30'000 : 0));
    if (!all && reply.status().code() == Code::timeout) return;
    ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
    ASSERT_TRUE(reply->error.is_ok()) << reply->error.to_string();
    check(reply->value, prompts_.at(reply->request_id));
    prompts_.erase(reply->request_id);
  }
}

void FaultyWorker::check(const ipc::GenerateReply& reply, const std::vector<int32_t>& prompt) {
  for (const ipc::Completion& completion : reply.completions) {
    ipc::GenerateReply one = reply;
    one.completions = {completion};
    if (static_cast<FinishReason>(completion.finish_reason) == FinishReason::aborted) {
      // An update's abort is no fault of the tokens before it: they are checked as if they had
      // ended there.
      one.completions[0].finish_reason = static_cast<uint8_t>(FinishReason::cancelled);
      one.completions[0].error.clear();
    }
    std::vector<bridge::ScoredVersion> versions;
    for (const auto& span : completion.versions) {
      versions.push_back({span.weight_version, scorer_of(span.weight_version)});
    }
    const auto result = bridge::check_completions(prompt, one, versions);
    ASSERT_TRUE(result.is_ok()) << result.status().to_string();
    ASSERT_EQ(result->mismatches, 0u) << result->first_difference->to_string();
    logprobs_checked_ += result->logprobs_checked;
    completions_checked_++;
  }
}

bridge::Scorer* FaultyWorker::scorer_of(uint64_t version) {
  auto found = scorers_.find(version);
  if (found == scorers_.end()) {
    const auto tensors = bridge_tests::hash_tensors(config_, version);
    auto made = bridge::Scorer::from_tensors(config_, bridge::named_tensors(tensors), {1, 256});
    EXPECT_TRUE(made.is_ok()) << made.status().to_string();
    found = scorers_.emplace(version, std::move(*made)).first;
    constexpr size_t kKept = 12;
    if (scorers_.size() > kKept && scorers_.begin() != found) scorers_.erase(scorers_.begin());
  }
  return found->second.get();
}

std::vector<std::string> FaultyWorker::mapped_segments() const {
  std::vector<std::string> names;
  std::ifstream maps("/proc/" + std::to_string(process()) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("exact-rollout.") != std::string::npos) names.push_back(line);
  }
  return names;
}

void FaultyWorker::expect_whole(const std::vector<uint64_t>& expected,
                                const std::string& segment_name) {
  ipc::StatusReply status;
  ASSERT_TRUE(eventually([&] {
    status = client_->status();
    return status.update_state == "idle";
  })) << status.update_state;
  const uint64_t live = status.weight_version;
  ASSERT_NE(std::find(expected.begin(), expected.end(), live), expected.end())
      << "version " << live << " is live, expected " << testing::PrintToString(expected);
  bridge::Scorer* live_scorer = scorer_of(live);
  EXPECT_EQ(status.weights_digest, live_scorer->weights_digest());
  const auto reply = client_->call<ipc::ScoreReply>(ipc::Score{kProbe});
  ASSERT_TRUE(reply.is_ok()) << reply.status().to_string();
  EXPECT_EQ(reply->weight_version, live);
  for (const uint64_t version : expected) {
    const auto score = scorer_of(version)->score(kProbe);
    ASSERT_TRUE(score.is_ok()) << score.status().to_string();
    EXPECT_EQ(bool(ranges_have_equal_bits(reply->logprobs, *score)), version == live)
        << "scores of version " << version << " while " << live << " is live";
  }
  EXPECT_EQ(mapped_segments(), std::vector<std::string>());
  if (!segment_name.empty()) {
    EXPECT_FALSE(worker_tests::segment_exists(segment_name)) << segment_name;
  }
}

void FaultyWorker::expect_next_update_works(UpdatePolicy policy) {
  const uint64_t version = live_version() + 1;
  Status last;
  // A machine that makes this trainer wait for longer than the worker's patience is no fault of
  // the worker: only then it tries again.
  for (int attempt = 0; attempt < 5; attempt++) {
    auto steps = update(version, policy);
    const auto committed = steps.run();
    last = committed.status();
    if (committed) {
      EXPECT_EQ(committed->weight_version, version);
      expect_whole({version}, steps.ready.segment_name);
      return;
    }
    if (last.code() != Code::timeout) break;
  }
  FAIL() << last.to_string();
}

}  // namespace exact::fault_tests
