// types.h owns the small distinct types that the engine's parts share.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace exact {

// An integer that can't be mistaken for another kind of integer.
template <class Tag, class Value>
struct StrongId {
  Value value{};
  friend auto operator<=>(const StrongId&, const StrongId&) = default;
};

using RequestId = StrongId<struct RequestTag, uint64_t>;  // chosen by whoever submits
// One sample, or one text to score: its place in the engine's table, reused when it has ended.
using SequenceId = StrongId<struct SequenceTag, int32_t>;
using WeightVersion = StrongId<struct VersionTag, uint64_t>;  // of the live weights, from 1

}  // namespace exact

template <class Tag, class Value>
struct std::hash<exact::StrongId<Tag, Value>> {
  size_t operator()(const exact::StrongId<Tag, Value>& id) const {
    return std::hash<Value>()(id.value);
  }
};
