// rollouts.h owns what is known of each rollout in flight, and the events that nobody has taken
// yet, in the order they came. It sends nothing.
//
// Bounded by what was asked for: chunks of one sample that wait become one chunk, a sample is done
// once, and a part that can't be (a gap, a stranger, sums that differ) fails its rollout as
// corrupt.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "ipc/messages.h"
#include "kernels/base/result.h"
#include "trainer_bridge/client.h"

namespace exact::bridge {

class Rollouts {
 public:
  void add(uint64_t request_id, const ipc::Generate& request);
  bool contains(uint64_t request_id) const { return rollouts_.contains(request_id); }
  // Submitted, and not yet taken to the end.
  size_t in_flight() const { return rollouts_.size(); }

  // ---- what came. corrupt: the part can't be; the rollout is then failed with that error.
  Status receive(uint64_t request_id, ipc::TokenChunk chunk);
  Status receive(uint64_t request_id, ipc::SampleDone done);
  Status receive(uint64_t request_id, const ipc::MaskWanted& wanted);
  Status receive(uint64_t request_id, ipc::GenerateReply reply);
  void fail(uint64_t request_id, Status error);
  // Says nothing of a rollout that has ended: its mask came too late.
  void refuse_mask(uint64_t request_id, MaskRefused refused);

  // ---- what is taken
  bool has_event() const { return !events_.empty(); }
  Event take_event();  // checked: there is one
  // The rollout that ended first, of those not taken.
  std::optional<uint64_t> first_done() const;
  bool is_done(uint64_t request_id) const;
  // The reply of an ended rollout, with the completions that came before it and were not taken; its
  // other events are dropped.
  Reply take_reply(uint64_t request_id);
  void forget(uint64_t request_id);

 private:
  using EventPlace = std::list<Event>::iterator;
  struct Sample {
    ipc::TokenChunk received;  // the chunks so far, added up
    bool done = false;
    std::optional<EventPlace> chunk, mask;  // events that nobody has taken yet
  };
  struct Rollout {
    int32_t n = 0;
    ipc::ReplyMode mode = ipc::ReplyMode::whole;
    int32_t max_new_tokens = 0;
    bool masked = false;
    bool done = false;
    int32_t samples_done = 0;
    std::map<int32_t, Sample> samples;  // those of which something came
  };

  Result<Sample*> find_open(uint64_t request_id, int32_t sample_index, const char* part);
  EventPlace push(Event event);
  void end(uint64_t request_id, Reply reply);

  std::unordered_map<uint64_t, Rollout> rollouts_;
  std::list<Event> events_;
  std::deque<uint64_t> done_;  // in the order they ended
};

}  // namespace exact::bridge
