#include "worker/outbox.h"

namespace exact::worker {
namespace {

constexpr uint64_t kEntryBytes = 128;  // what a message takes beside its contents

uint64_t bytes_of(const ipc::TokenChunk& chunk) {
  return 4 * (chunk.tokens.size() + chunk.logprobs.size() + chunk.processed_logprobs.size());
}

}  // namespace

bool Outbox::has_room(uint64_t bytes) const {
  if (entries_.empty()) return true;
  return entries_.size() < limits_.messages && bytes_ + bytes <= limits_.bytes;
}

void Outbox::add(Entry entry) {
  bytes_ += entry.bytes;
  entries_.push_back(std::move(entry));
}

bool Outbox::push(ipc::Frames frames) {
  const uint64_t bytes = kEntryBytes + frames.header.size() + frames.body.size();
  if (!has_room(bytes)) return false;
  add({std::move(frames), std::nullopt, 0, bytes});
  return true;
}

bool Outbox::push(uint64_t request_id, ipc::TokenChunk chunk) {
  const SampleKey key{request_id, chunk.sample_index};
  const uint64_t contents = bytes_of(chunk);
  if (const auto found = unsealed_.find(key); found != unsealed_.end()) {
    if (bytes_ + contents > limits_.bytes) return false;
    Entry& waiting = *found->second;
    EXACT_CHECK(
        chunk.begin == waiting.chunk->begin + static_cast<int32_t>(waiting.chunk->tokens.size()),
        "a chunk that does not follow the one before it");
    waiting.chunk->append(chunk);
    waiting.bytes += contents;
    bytes_ += contents;
    return true;
  }
  const uint64_t bytes = kEntryBytes + contents;
  if (!has_room(bytes)) return false;
  add({{}, std::move(chunk), request_id, bytes});
  unsealed_.emplace(key, &entries_.back());
  return true;
}

Result<bool> Outbox::flush(const std::function<Status(const ipc::Frames&)>& send) {
  bool took_one = false;
  while (!entries_.empty()) {
    const Entry& front = entries_.front();
    const Status sent =
        send(front.chunk ? ipc::encode(*front.chunk, front.request_id) : front.frames);
    if (sent.code() == Code::exhausted) break;
    if (!sent.is_ok()) return sent;
    took_one = true;
    drop_front();
  }
  return took_one;
}

void Outbox::drop_front() {
  const Entry& front = entries_.front();
  if (front.chunk) unsealed_.erase({front.request_id, front.chunk->sample_index});
  bytes_ -= front.bytes;
  entries_.pop_front();
}

}  // namespace exact::worker
