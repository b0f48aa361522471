// outbox.h owns what waits for one client behind its full socket: messages in order, and chunks of
// tokens. Chunks of one sample that wait become one chunk, so a slow reader of a stream makes it
// coarser, not longer. Bounded: what does not fit is refused, and the caller gives the client up.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <utility>

#include "ipc/codec.h"
#include "ipc/messages.h"
#include "kernels/base/result.h"

namespace exact::worker {

class Outbox {
 public:
  struct Limits {
    size_t messages = 0;
    uint64_t bytes = 0;  // of all that waits; a first message is taken whatever its size
  };
  explicit Outbox(const Limits& limits) : limits_(limits) {}

  // False: full, and nothing was taken.
  bool push(ipc::Frames frames);
  bool push(uint64_t request_id, ipc::TokenChunk chunk);

  // Hands messages to `send`, oldest first, until it answers exhausted. True: it took at least one.
  // Any other error of `send` is returned.
  Result<bool> flush(const std::function<Status(const ipc::Frames&)>& send);

  bool empty() const { return entries_.empty(); }
  size_t messages() const { return entries_.size(); }
  uint64_t bytes() const { return bytes_; }

 private:
  using SampleKey = std::pair<uint64_t, int32_t>;  // request id, sample index
  struct Entry {
    ipc::Frames frames;
    std::optional<ipc::TokenChunk> chunk;  // instead of frames: it may still grow
    uint64_t request_id = 0;               // of the chunk
    uint64_t bytes = 0;
  };
  bool has_room(uint64_t bytes) const;
  void add(Entry entry);
  void drop_front();

  Limits limits_;
  std::deque<Entry> entries_;             // references to its elements stay good
  std::map<SampleKey, Entry*> unsealed_;  // the chunk of each sample that waits
  uint64_t bytes_ = 0;
};

}  // namespace exact::worker
