#include "trainer_bridge/rollouts.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace exact::bridge {
namespace {

Status broken(uint64_t request_id, int32_t sample_index, const std::string& what) {
  return Status(Code::corrupt, "request " + std::to_string(request_id) + ", sample " +
                                   std::to_string(sample_index) + ": " + what +
                                   ": are both sides of the same release?");
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace

void Rollouts::add(uint64_t request_id, const ipc::Generate& request) {
  Rollout rollout;
  rollout.n = request.n;
  rollout.mode = static_cast<ipc::ReplyMode>(request.reply_mode);
  rollout.max_new_tokens = request.max_new_tokens;
  rollout.masked = request.masked;
  rollouts_.emplace(request_id, std::move(rollout));
}

Result<Rollouts::Sample*> Rollouts::find_open(uint64_t request_id, int32_t sample_index,
                                              const char* part) {
  Rollout& rollout = rollouts_.at(request_id);
  if (sample_index < 0 || sample_index >= rollout.n) {
    return broken(request_id, sample_index,
                  std::string(part) + " of a sample that nobody asked for");
  }
  Sample& sample = rollout.samples[sample_index];
  if (sample.done) {
    return broken(request_id, sample_index, std::string(part) + " of a sample that is done");
  }
  return &sample;
}

Rollouts::EventPlace Rollouts::push(Event event) {
  return events_.insert(events_.end(), std::move(event));
}

Status Rollouts::receive(uint64_t request_id, ipc::TokenChunk chunk) {
  const Rollout& rollout = rollouts_.at(request_id);
  EXACT_ASSIGN(Sample* const sample, find_open(request_id, chunk.sample_index, "a chunk"));
  const size_t tokens = chunk.tokens.size();
  const size_t before = sample->received.tokens.size();
  if (rollout.mode != ipc::ReplyMode::tokens || tokens == 0 || chunk.logprobs.size() != tokens ||
      chunk.processed_logprobs.size() != tokens) {
    return broken(request_id, chunk.sample_index, "a chunk that can't be");
  }
  if (chunk.begin != static_cast<int32_t>(before)) {
    return broken(request_id, chunk.sample_index,
                  "a chunk begins at token " + std::to_string(chunk.begin) + ", after " +
                      std::to_string(before) + " tokens");
  }
  if (rollout.max_new_tokens > 0 && before + tokens > static_cast<size_t>(rollout.max_new_tokens)) {
    return broken(request_id, chunk.sample_index, "more tokens than max_new_tokens");
  }
  sample->received.append(chunk);
  if (sample->chunk) {
    std::get<ipc::TokenChunk>((*sample->chunk)->what).append(chunk);
  } else {
    sample->chunk = push({request_id, std::move(chunk)});
  }
  return {};
}

Status Rollouts::receive(uint64_t request_id, ipc::SampleDone done) {
  Rollout& rollout = rollouts_.at(request_id);
  const int32_t index = done.completion.sample_index;
  EXACT_ASSIGN(Sample* const sample, find_open(request_id, index, "the end"));
  if (rollout.mode == ipc::ReplyMode::whole) {
    return broken(request_id, index, "a part of a rollout that is answered whole");
  }
  const ipc::TokenChunk& sum = sample->received;
  const ipc::Completion& completion = done.completion;
  if (rollout.mode == ipc::ReplyMode::tokens &&
      !(same_bits(sum.tokens, completion.tokens) && same_bits(sum.logprobs, completion.logprobs) &&
        same_bits(sum.processed_logprobs, completion.processed_logprobs))) {
    return broken(request_id, index, "its chunks do not add up to its completion");
  }
  sample->done = true;
  sample->received = {};
  rollout.samples_done++;
  push({request_id, std::move(done)});
  return {};
}

Status Rollouts::receive(uint64_t request_id, const ipc::MaskWanted& wanted) {
  EXACT_ASSIGN(Sample* const sample, find_open(request_id, wanted.sample_index, "a wanted mask"));
  if (!rollouts_.at(request_id).masked) {
    return broken(request_id, wanted.sample_index, "a wanted mask of a rollout without masks");
  }
  if (sample->mask) {
    (*sample->mask)->what = wanted;
  } else {
    sample->mask = push({request_id, wanted});
  }
  return {};
}

Status Rollouts::receive(uint64_t request_id, ipc::GenerateReply reply) {
  const Rollout& rollout = rollouts_.at(request_id);
  if (rollout.mode != ipc::ReplyMode::whole &&
      (rollout.samples_done != rollout.n || !reply.completions.empty())) {
    return Status(Code::corrupt, "request " + std::to_string(request_id) + " was answered when " +
                                     std::to_string(rollout.samples_done) + " of its " +
                                     std::to_string(rollout.n) +
                                     " samples had come: are both sides of the same release?");
  }
  end(request_id, {request_id, Status(), std::move(reply)});
  return {};
}

void Rollouts::fail(uint64_t request_id, Status error) {
  end(request_id, {request_id, std::move(error), {}});
}

void Rollouts::end(uint64_t request_id, Reply reply) {
  rollouts_.at(request_id).done = true;
  done_.push_back(request_id);
  push({request_id, std::move(reply)});
}

void Rollouts::refuse_mask(uint64_t request_id, MaskRefused refused) {
  const auto found = rollouts_.find(request_id);
  if (found == rollouts_.end() || found->second.done) return;  // the Reply is its last event
  push({request_id, std::move(refused)});
}

Event Rollouts::take_event() {
  EXACT_CHECK(has_event(), "no event to take");
  Event event = std::move(events_.front());
  const auto rollout = rollouts_.find(event.request_id);
  EXACT_CHECK(rollout != rollouts_.end(), "an event of no rollout");
  if (const auto* chunk = std::get_if<ipc::TokenChunk>(&event.what)) {
    rollout->second.samples.at(chunk->sample_index).chunk.reset();
  } else if (const auto* mask = std::get_if<ipc::MaskWanted>(&event.what)) {
    rollout->second.samples.at(mask->sample_index).mask.reset();
  } else if (std::holds_alternative<Reply>(event.what)) {
    rollouts_.erase(rollout);
    std::erase(done_, event.request_id);
  }
  events_.pop_front();
  return event;
}

std::optional<uint64_t> Rollouts::first_done() const {
  if (done_.empty()) return std::nullopt;
  return done_.front();
}

bool Rollouts::is_done(uint64_t request_id) const {
  const auto found = rollouts_.find(request_id);
  return found != rollouts_.end() && found->second.done;
}

Reply Rollouts::take_reply(uint64_t request_id) {
  EXACT_CHECK(is_done(request_id), "a reply that has not come");
  Reply reply;
  std::vector<ipc::Completion> completions;
  for (Event& event : events_) {
    if (event.request_id != request_id) continue;
    if (auto* done = std::get_if<ipc::SampleDone>(&event.what)) {
      completions.push_back(std::move(done->completion));
    } else if (auto* last = std::get_if<Reply>(&event.what)) {
      reply = std::move(*last);
    }
  }
  std::sort(completions.begin(), completions.end(),
            [](const auto& a, const auto& b) { return a.sample_index < b.sample_index; });
  if (reply.value.completions.empty()) reply.value.completions = std::move(completions);
  forget(request_id);
  return reply;
}

void Rollouts::forget(uint64_t request_id) {
  std::erase_if(events_, [&](const Event& event) { return event.request_id == request_id; });
  std::erase(done_, request_id);
  rollouts_.erase(request_id);
}

}  // namespace exact::bridge
