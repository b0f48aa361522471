// random_messages.h makes any message of the protocol with random contents: an "archive" that fills
// every field a serialize() names, so that no field of a new message can be forgotten here.
#pragma once

#include <bit>
#include <string>
#include <type_traits>
#include <vector>

#include "ipc/messages.h"
#include "tests/ipc/random.h"

namespace exact::ipc {

class RandomFiller {
 public:
  explicit RandomFiller(uint64_t seed) : random_(seed) {}

  template <class... Fields>
  void operator()(Fields&&... fields) {
    (fill(fields.value), ...);
  }

 private:
  template <class T>
  void fill(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      value = random_.below(2) == 1;
    } else if constexpr (std::is_same_v<T, float>) {
      value = std::bit_cast<float>(static_cast<uint32_t>(random_.next()));
    } else if constexpr (std::is_arithmetic_v<T>) {
      value = static_cast<T>(random_.next());
    } else {
      value.serialize(*this);
    }
  }
  void fill(std::string& text) { text = random_.bytes(random_.below(40)); }
  template <class T>
  void fill(std::vector<T>& values) {
    values.resize(random_.below(5));
    for (T& value : values) fill(value);
  }

  Random random_;
};

template <class Message>
Message random_message(uint64_t seed) {
  Message message;
  RandomFiller filler(seed);
  message.serialize(filler);
  return message;
}

// Calls visit.operator()<Message>() for every message of the protocol.
template <class Visit>
void for_each_message(Visit visit) {
  const auto each = [&]<class... Message>(std::type_identity<Message>...) {
    (visit.template operator()<Message>(), ...);
  };
  each(std::type_identity<ErrorReply>(), std::type_identity<Hello>(),
       std::type_identity<HelloReply>(), std::type_identity<Ping>(), std::type_identity<Pong>(),
       std::type_identity<Generate>(), std::type_identity<GenerateReply>(),
       std::type_identity<Score>(), std::type_identity<ScoreReply>(), std::type_identity<Cancel>(),
       std::type_identity<CancelReply>(), std::type_identity<StatusQuery>(),
       std::type_identity<StatusReply>(), std::type_identity<UpdateBegin>(),
       std::type_identity<UpdateReady>(), std::type_identity<UpdateBucket>(),
       std::type_identity<UpdateBucketDone>(), std::type_identity<UpdateCommit>(),
       std::type_identity<UpdateCommitted>(), std::type_identity<UpdateAbort>(),
       std::type_identity<UpdateAborted>(), std::type_identity<SampleDone>(),
       std::type_identity<TokenChunk>(), std::type_identity<MaskWanted>(),
       std::type_identity<Allow>(), std::type_identity<AllowReply>(), std::type_identity<Sleep>(),
       std::type_identity<SleepReply>(), std::type_identity<Wake>(),
       std::type_identity<WakeReply>());
}

}  // namespace exact::ipc
