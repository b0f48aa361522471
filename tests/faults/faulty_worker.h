// faulty_worker.h owns the process `rollout serve` that faults are done to, and what must hold
// after each of them: it serves exactly one version, bit for bit, holds no shared memory, and takes
// the next update; and no completion has a bit of any version but those that it names.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/faults/points.h"
#include "tests/worker/program.h"
#include "tests/worker/worker_fixture.h"
#include "trainer_bridge/client.h"
#include "trainer_bridge/completion_check.h"
#include "trainer_bridge/scorer.h"

namespace exact::fault_tests {

// The weights of version v are those of hash seed v, the model's own are version 1.
class FaultyWorker {
 public:
  explicit FaultyWorker(int update_timeout_ms);

  // ---- the process
  void kill_and_restart();
  void signal(int number) { program_->signal(number); }
  pid_t process() const { return program_->process(); }
  const std::string& endpoint() const { return endpoint_name_; }
  worker_tests::RawClient& client() { return *client_; }

  // ---- updates
  worker_tests::UpdateSteps update(uint64_t version,
                                   UpdatePolicy policy = UpdatePolicy::recompute) {
    return {*client_, config_, version, kBucketBytes, policy};
  }
  uint64_t live_version() { return client_->status().weight_version; }
  uint64_t bucket_count();

  // ---- rollouts in flight
  void keep_busy(size_t requests, int32_t max_new_tokens);
  // Checks every completion that has come; until none is in flight, if `all`.
  void collect(bool all);
  uint64_t logprobs_checked() const { return logprobs_checked_; }
  uint64_t completions_checked() const { return completions_checked_; }

  // ---- what must hold. `expected`: the versions of which one must be live.
  void expect_whole(const std::vector<uint64_t>& expected, const std::string& segment_name);
  void expect_next_update_works(UpdatePolicy policy);

 private:
  void start();
  bridge::Scorer* scorer_of(uint64_t version);
  void check(const ipc::GenerateReply& reply, const std::vector<int32_t>& prompt);
  std::vector<std::string> mapped_segments() const;

  worker_tests::ScratchDirectory scratch_;
  ModelConfig config_ = bridge_tests::tiny_config();
  std::string endpoint_name_;
  int update_timeout_ms_;
  std::unique_ptr<worker_tests::Program> program_;
  std::unique_ptr<worker_tests::RawClient> client_;
  std::unique_ptr<bridge::Client> rollouts_;
  std::map<uint64_t, std::vector<int32_t>> prompts_;
  std::map<uint64_t, std::unique_ptr<bridge::Scorer>> scorers_;
  uint64_t submitted_ = 0, logprobs_checked_ = 0, completions_checked_ = 0;
};

}  // namespace exact::fault_tests
