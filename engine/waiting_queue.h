// waiting_queue.h owns the order in which sequences that could run are admitted: by priority; those
// that have run before first, oldest first; then new ones, clients taking turns.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <set>

#include "engine/types.h"

namespace exact {

// Turns are counted in sequences, and for each priority by itself: a client whose last request came
// in for n of them is n turns behind one that came in for one. A client that was away has no turns
// saved up.
class WaitingQueue {
 public:
  // Where a sequence stands; who put it in keeps it, to take it out.
  struct Place {
    int32_t falling_priority = 0;  // minus the priority
    bool is_new = false;
    uint64_t turn = 0;  // age, of one that has run
    uint64_t arrival = 0;
    SequenceId sequence;
    friend auto operator<=>(const Place&, const Place&) = default;
  };

  // A request of `count` sequences, of which `sequence` stands for all.
  Place add_new(SequenceId sequence, int32_t priority, uint32_t client, int32_t count);
  // One that has run before; the lower `age`, the sooner.
  Place add_again(SequenceId sequence, int32_t priority, uint64_t age);
  // It was admitted: now it's the next client's turn.
  void admitted(const Place& place);
  void remove(const Place& place) { places_.erase(place); }

  const std::set<Place>& places() const { return places_; }  // in order of admission
  bool empty() const { return places_.empty(); }

 private:
  struct ClientTurn {
    int32_t falling_priority = 0;
    uint32_t client = 0;
    friend auto operator<=>(const ClientTurn&, const ClientTurn&) = default;
  };
  void forget_idle_clients();

  std::set<Place> places_;
  std::map<int32_t, uint64_t> now_;         // by priority: the turn of the last new one admitted
  std::map<ClientTurn, uint64_t> clients_;  // the first turn that each has not used
  uint64_t next_arrival_ = 0;
};

}  // namespace exact
