// A completion that can't be what was asked for is found, and each way has its sentence.
#include "trainer_bridge/rollout_check.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace exact::bridge_tests {
namespace {

ipc::Generate request_of_all() {
  ipc::Generate request;
  request.prompt = {1, 2, 3};
  request.n = 2;
  request.seed = 5;
  request.max_new_tokens = 4;
  request.forced_ids = {9};
  request.entropy = request.kept_set = request.prompt_logprobs = true;
  request.top_logprobs = 2;
  return request;
}

ipc::Completion completion_of_all() {
  ipc::Completion completion;
  completion.tokens = {9, 7};
  completion.logprobs = completion.processed_logprobs = completion.entropies = {-1, -2};
  completion.versions = {{0, 1, std::string(32, 'a')}, {1, 2, std::string(32, 'b')}};
  completion.top_ids = {4, 9, 7, 8};
  completion.top_logprobs = {-0.5f, -1, -2, -2};
  completion.kept_counts = {1, 3};
  completion.kept_ids = {4, 6, 7, 8};
  completion.prompt_logprobs = {-3, -4};
  return completion;
}

TEST(RolloutCheck, WhatWasAskedForPasses) {
  const ipc::Generate request = request_of_all();
  EXPECT_TRUE(bridge::check_completion(request, completion_of_all()).is_ok());
  ipc::Completion cancelled;  // before its first token
  cancelled.finish_reason = 2;
  EXPECT_TRUE(bridge::check_completion(request, cancelled).is_ok());
  ipc::GenerateReply reply{"", 5, {completion_of_all(), completion_of_all()}};
  reply.completions[1].sample_index = 1;
  const Status whole = bridge::check_rollout(request, reply);
  EXPECT_TRUE(whole.is_ok()) << whole.to_string();
}

TEST(RolloutCheck, WhatCantBeIsNamed) {
  using Change = std::function<void(ipc::Completion&)>;
  const std::vector<std::pair<std::string, Change>> cases{
      {"none of the 2", [](auto& c) { c.sample_index = 2; }},
      {"unknown reason", [](auto& c) { c.finish_reason = 6; }},
      {"more tokens", [](auto& c) { c.tokens.resize(5); }},
      {"forced_ids", [](auto& c) { c.tokens[0] = 8; }},
      {"1 logprobs where 2", [](auto& c) { c.logprobs.pop_back(); }},
      {"processed_logprobs", [](auto& c) { c.processed_logprobs.push_back(0); }},
      {"0 entropies", [](auto& c) { c.entropies.clear(); }},
      {"top_ids", [](auto& c) { c.top_ids.pop_back(); }},
      {"top_logprobs", [](auto& c) { c.top_logprobs.push_back(0); }},
      {"do not descend", [](auto& c) { c.top_logprobs[3] = -1; }},
      {"kept_counts where", [](auto& c) { c.kept_counts.push_back(1); }},
      {"kept_counts of 0", [](auto& c) { c.kept_counts[0] = 0; }},
      {"kept_counts of 9", [](auto& c) { c.kept_counts[1] = 9; }},
      {"kept_ids where", [](auto& c) { c.kept_ids.push_back(9); }},
      {"do not ascend",
       [](auto& c) {
         c.kept_ids = {4, 7, 6, 8};
       }},
      {"kept set does not hold",
       [](auto& c) {
         c.kept_ids = {4, 5, 6, 8};
       }},
      {"prompt_logprobs", [](auto& c) { c.prompt_logprobs.clear(); }},
      {"no version", [](auto& c) { c.versions.clear(); }},
      {"do not ascend", [](auto& c) { c.versions[1].begin = 0; }},
      {"do not ascend", [](auto& c) { c.versions[1].begin = 2; }},
      {"do not ascend", [](auto& c) { c.versions[0].begin = -1; }},
  };
  for (const auto& [words, change] : cases) {
    ipc::Completion completion = completion_of_all();
    change(completion);
    const Status status = bridge::check_completion(request_of_all(), completion);
    EXPECT_EQ(status.code(), Code::corrupt) << words;
    EXPECT_NE(status.message().find(words), std::string::npos)
        << "'" << status.message() << "' does not say '" << words << "'";
  }
}

TEST(RolloutCheck, GroupsAreWholeAndInOrder) {
  const ipc::Generate request = request_of_all();
  ipc::GenerateReply reply{"", 5, {completion_of_all(), completion_of_all()}};
  EXPECT_FALSE(bridge::check_rollout(request, reply).is_ok());  // twice sample 0
  reply.completions[1].sample_index = 1;
  reply.seed = 6;
  EXPECT_FALSE(bridge::check_rollout(request, reply).is_ok());
  reply.seed = 5;
  reply.completions.pop_back();
  EXPECT_FALSE(bridge::check_rollout(request, reply).is_ok());
}

}  // namespace
}  // namespace exact::bridge_tests
