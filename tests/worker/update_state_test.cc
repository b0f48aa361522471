// The table of a weight update's states, all of it: what is allowed leads where it should, and
// nothing else is allowed.
#include "worker/update_state.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>

namespace exact::worker {
namespace {

using enum UpdateState;

const std::map<std::pair<UpdateState, UpdateEvent>, UpdateState> kAllowed = {
    {{idle, UpdateEvent::begin}, receiving},
    {{receiving, UpdateEvent::bucket}, receiving},
    {{receiving, UpdateEvent::all_verified}, verified},
    {{verified, UpdateEvent::commit}, committing},
    {{committing, UpdateEvent::live}, idle},
    {{receiving, UpdateEvent::abort}, idle},
    {{verified, UpdateEvent::abort}, idle},
    {{receiving, UpdateEvent::failure}, idle},
    {{verified, UpdateEvent::failure}, idle},
};

TEST(UpdateState, AllowsWhatTheTableSaysAndNothingElse) {
  for (const UpdateState state : kUpdateStates) {
    for (const UpdateEvent event : kUpdateEvents) {
      const auto allowed = kAllowed.find({state, event});
      const auto next = next_state(state, event);
      EXPECT_EQ(next.has_value(), allowed != kAllowed.end())
          << update_state_name(state) << " event " << static_cast<int>(event);
      if (next && allowed != kAllowed.end()) {
        EXPECT_EQ(*next, allowed->second);
      }
    }
  }
}

// The diagram has an arrow for each pair of states that an event joins, and no other.
TEST(UpdateState, IsWhatTheProtocolDraws) {
  std::ifstream file(EXACT_SOURCE_DIR "/docs/protocol.md");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  for (const UpdateState from : kUpdateStates) {
    for (const UpdateState to : kUpdateStates) {
      bool joined = false;
      for (const UpdateEvent event : kUpdateEvents) joined |= next_state(from, event) == to;
      const std::string arrow = "    " + std::string(update_state_name(from)) + " --> " +
                                std::string(update_state_name(to)) + ":";
      EXPECT_EQ(text.find(arrow) != std::string::npos, joined) << arrow;
    }
  }
}

}  // namespace
}  // namespace exact::worker
