// Rollouts whose tokens wait for their client: what it allows is what comes, and nobody else waits.
#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "tests/support/expect_bits.h"
#include "tests/worker/parts.h"
#include "tests/worker/worker_fixture.h"
#include "trainer_bridge/client.h"
#include "trainer_bridge/rollout_check.h"

namespace exact::worker_tests {
namespace {

using ipc::ReplyMode;

ipc::Generate masked(std::vector<int32_t> prompt, int32_t max_new_tokens, int32_t n = 1) {
  ipc::Generate request = generate(std::move(prompt), max_new_tokens, 5, n);
  request.masked = true;
  return in_mode(request, ReplyMode::tokens);
}

TEST(Masks, OneIdAtATimeForcesExactlyThatText) {
  LocalWorker worker;
  const auto client = bridge_tests::connect(worker.endpoint());
  const std::vector<std::vector<int32_t>> texts{{9, 8, 7, 6, 5, 4}, {200, 1, 200, 2, 200, 3}};
  ipc::Generate request = masked({3, 1, 4}, 6, 2);
  request.kept_set = true;
  const auto id = client->submit(request);
  ASSERT_TRUE(id.is_ok()) << id.status().to_string();
  std::vector<ipc::Completion> samples(2);
  int asked = 0;
  for (bool done = false; !done;) {
    const auto event = client->next_event(milliseconds(20'000));
    ASSERT_TRUE(event.is_ok()) << event.status().to_string();
    if (const auto* wanted = std::get_if<ipc::MaskWanted>(&event->what)) {
      asked++;
      const auto& text = texts.at(static_cast<size_t>(wanted->sample_index));
      const auto index = static_cast<size_t>(wanted->index);
      EXPECT_EQ(wanted->previous_token, index == 0 ? -1 : text.at(index - 1));
      ASSERT_TRUE(client->allow(*id, wanted->sample_index, wanted->index, {&text.at(index), 1}));
    } else if (const auto* sample = std::get_if<ipc::SampleDone>(&event->what)) {
      samples.at(static_cast<size_t>(sample->completion.sample_index)) = sample->completion;
    } else {
      EXPECT_FALSE(std::holds_alternative<bridge::MaskRefused>(event->what));
      done = std::holds_alternative<bridge::Reply>(event->what);
    }
  }
  EXPECT_EQ(asked, 12);
  for (size_t s = 0; s < 2; s++) {
    EXPECT_EQ(samples[s].tokens, texts[s]);
    EXPECT_BITS_EQ(samples[s].processed_logprobs, std::vector<float>(6, 0.0f), s);
    EXPECT_EQ(samples[s].kept_ids, texts[s]);
    const Status checked = bridge::check_completion(request, samples[s]);
    EXPECT_TRUE(checked.is_ok()) << checked.to_string();
    std::vector<int32_t> whole = request.prompt;
    whole.insert(whole.end(), texts[s].begin(), texts[s].end());
    const auto score = client->score(whole);
    ASSERT_TRUE(score.is_ok()) << score.status().to_string();
    EXPECT_BITS_EQ(samples[s].logprobs,
                   std::vector<float>(score->logprobs.end() - 6, score->logprobs.end()), s);
  }
}

// Allowing everything is a rollout without masks, bit for bit.
TEST(Masks, AllIdsAllowedIsAnUnmaskedRollout) {
  LocalWorker worker;
  const auto client = bridge_tests::connect(worker.endpoint());
  std::vector<int32_t> all;
  for (int32_t id = 0; id < worker.config().vocabulary; id++) all.push_back(id);
  const ipc::Generate request = masked({3, 1, 4}, 10);
  const auto id = client->submit(request);
  ASSERT_TRUE(id.is_ok());
  ipc::Completion sample;
  for (bool done = false; !done;) {
    const auto event = client->next_event(milliseconds(20'000));
    ASSERT_TRUE(event.is_ok()) << event.status().to_string();
    if (const auto* wanted = std::get_if<ipc::MaskWanted>(&event->what)) {
      ASSERT_TRUE(client->allow(*id, 0, wanted->index, all));
    }
    if (const auto* end = std::get_if<ipc::SampleDone>(&event->what)) sample = end->completion;
    done = std::holds_alternative<bridge::Reply>(event->what);
  }
  const auto plain = client->generate(generate({3, 1, 4}, 10, 5));
  ASSERT_TRUE(plain.is_ok()) << plain.status().to_string();
  expect_same(sample, plain->completions.at(0));
}

TEST(Masks, NobodyElseWaitsAndTheLoopDoesNotSpin) {
  LocalWorker worker;
  RawClient waiting(worker.endpoint()), other(worker.endpoint());
  waiting.hello();
  other.hello();
  const uint64_t id = waiting.post(masked({1, 2, 3}, 4));
  const auto wanted = waiting.next_answer();
  ASSERT_TRUE(wanted.is_ok());
  EXPECT_EQ(part_of<ipc::MaskWanted>(*wanted).index, 0);
  EXPECT_TRUE(other.call<ipc::GenerateReply>(generate({1}, 20, 1)).is_ok());

  const std::clock_t before = std::clock();  // of the whole process
  std::this_thread::sleep_for(milliseconds(600));
  const double busy = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(busy, 0.2);

  for (int32_t index = 0; index < 4; index++) {
    waiting.post(ipc::Allow{id, 0, index, {7}});
    bool answered = false, made = false, next = index == 3;
    while (!answered || !made || !next) {
      const auto answer = waiting.next_answer();
      ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
      answered |= answer->header.type == ipc::MessageType::allow_reply;
      made |= answer->header.type == ipc::MessageType::token_chunk;
      next |= answer->header.type == ipc::MessageType::mask_wanted;
    }
  }
}

TEST(Masks, WrongAllowIsRefusedByWhatIsWrongAndTheSampleWaitsOn) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  ipc::Generate request = masked({1, 2, 3}, 1);
  request.banned_ids = {9};
  const uint64_t id = client.post(request);
  ASSERT_TRUE(client.next_answer().is_ok());
  const auto refused = [&](const ipc::Allow& allow, Code code, const std::string& words) {
    expect_error(client.call<ipc::AllowReply>(allow).status(), code, words);
  };
  refused({id, 0, 0, {}}, Code::invalid, "ids");
  refused({id, 0, 0, {5, 5}}, Code::invalid, "ids");
  refused({id, 0, 0, {1'000'000}}, Code::invalid, "ids[0]");
  refused({id, 0, 0, {9}}, Code::invalid, "banned_ids");
  refused({id, 0, 1, {5}}, Code::not_found, "token 1");
  refused({id, 1, 0, {5}}, Code::not_found, "sample 1");
  refused({id + 100, 0, 0, {5}}, Code::not_found, "target_request_id");
  client.post(ipc::Allow{id, 0, 0, {8, 9}});
  ipc::Completion sample;
  for (bool ended = false; !ended;) {
    const auto answer = client.next_answer();
    ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
    if (answer->header.type == ipc::MessageType::sample_done) {
      sample = part_of<ipc::SampleDone>(*answer).completion;
    }
    ended = answer->header.type == ipc::MessageType::generate_reply;
  }
  EXPECT_EQ(sample.tokens, (std::vector<int32_t>{8}));
}

TEST(Masks, DeadlineCancelAndDrainEndASampleThatWaits) {
  LocalWorker worker;
  RawClient client(worker.endpoint());
  client.hello();
  ipc::Generate request = masked({1, 2, 3}, 4);
  request.deadline_ms = 100;
  Parts parts = take_parts(client, client.post(request));
  EXPECT_EQ(parts.samples.at(0).finish_reason, static_cast<uint8_t>(FinishReason::deadline));
  EXPECT_EQ(parts.masks.size(), 1u);

  request.deadline_ms = 0;
  const uint64_t id = client.post(request);
  ASSERT_TRUE(client.next_answer().is_ok());
  client.post(ipc::Cancel{id});
  int messages = 0;
  for (; messages < 3; messages++) ASSERT_TRUE(client.next_answer().is_ok());
  EXPECT_EQ(client.status().running + client.status().waiting, 0);

  const uint64_t last = client.post(request);
  ASSERT_TRUE(client.next_answer().is_ok());
  worker.server().drain();
  std::this_thread::sleep_for(milliseconds(150));
  EXPECT_TRUE(worker.is_running());
  client.post(ipc::Cancel{last});
  EXPECT_TRUE(eventually([&] { return !worker.is_running(); }));
}

TEST(Masks, ClientThatGoesAwayLeavesNothingWaiting) {
  LocalWorker worker({.heartbeat_ms = 100});
  RawClient watcher(worker.endpoint());
  watcher.hello();
  {
    RawClient gone(worker.endpoint());
    gone.hello();
    gone.post(masked({1, 2, 3}, 4, 8));
    ASSERT_TRUE(gone.next_answer().is_ok());
  }
  EXPECT_TRUE(eventually([&] {
    const ipc::StatusReply status = watcher.status();
    return status.clients == 1 && status.running + status.waiting == 0;
  }));
  EXPECT_TRUE(watcher.call<ipc::GenerateReply>(generate({1}, 4, 1)).is_ok());
}

}  // namespace
}  // namespace exact::worker_tests
