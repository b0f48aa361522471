#include "replay/compare.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <span>
#include <string_view>
#include <vector>

namespace exact::replay {
namespace {

// What a completion and a result have alike, so that one walk serves both.
struct Made {
  std::span<const int32_t> tokens;
  std::span<const float> logprobs, processed_logprobs, entropies;
  std::span<const int32_t> top_ids;
  std::span<const float> top_logprobs;
  std::span<const int32_t> kept_counts, kept_ids;
  std::span<const float> prompt_logprobs;
};

template <class Completion>
Made view(const Completion& made) {
  return {made.tokens,      made.logprobs, made.processed_logprobs,
          made.entropies,   made.top_ids,  made.top_logprobs,
          made.kept_counts, made.kept_ids, made.prompt_logprobs};
}

template <class T>
std::span<const T> part(std::span<const T> all, size_t begin, size_t count) {
  begin = std::min(begin, all.size());
  return all.subspan(begin, std::min(count, all.size() - begin));
}

size_t kept_before(const Made& made, size_t token) {
  size_t sum = 0;
  for (const int32_t count : part(made.kept_counts, 0, token)) sum += static_cast<size_t>(count);
  return sum;
}

// Sees one field of one token on both sides; the first difference stays.
class Comparison {
 public:
  template <class T>
  void field(std::string_view name, size_t token, std::span<const T> recorded,
             std::span<const T> replayed) {
    if (found_) return;
    const size_t common = std::min(recorded.size(), replayed.size());
    for (size_t i = 0; i < common; i++) {
      const auto a = std::bit_cast<uint32_t>(recorded[i]);
      const auto b = std::bit_cast<uint32_t>(replayed[i]);
      if (a != b) {
        found_ = {
            std::string(name), static_cast<int32_t>(token), a, b, std::is_same_v<T, float>, ""};
        return;
      }
    }
    if (recorded.size() == replayed.size()) return;
    found_ = {std::string(name),
              static_cast<int32_t>(token),
              0,
              0,
              false,
              std::to_string(recorded.size()) + " values recorded, " +
                  std::to_string(replayed.size()) + " replayed"};
  }
  void note(std::string_view name, size_t token, std::string text) {
    if (found_) return;
    found_ = {std::string(name), static_cast<int32_t>(token), 0, 0, false, std::move(text)};
  }
  std::optional<Difference> take() { return std::move(found_); }
  bool found() const { return found_.has_value(); }

 private:
  std::optional<Difference> found_;
};

void compare_token(Comparison& both, const Made& a, const Made& b, size_t token, size_t top) {
  both.field("tokens", token, part(a.tokens, token, 1), part(b.tokens, token, 1));
  both.field("logprobs", token, part(a.logprobs, token, 1), part(b.logprobs, token, 1));
  both.field("processed_logprobs", token, part(a.processed_logprobs, token, 1),
             part(b.processed_logprobs, token, 1));
  both.field("entropies", token, part(a.entropies, token, 1), part(b.entropies, token, 1));
  both.field("top_ids", token, part(a.top_ids, token * top, top),
             part(b.top_ids, token * top, top));
  both.field("top_logprobs", token, part(a.top_logprobs, token * top, top),
             part(b.top_logprobs, token * top, top));
  both.field("kept_counts", token, part(a.kept_counts, token, 1), part(b.kept_counts, token, 1));
  if (a.kept_counts.empty() || both.found()) return;
  const auto count = static_cast<size_t>(a.kept_counts[token]);
  both.field("kept_ids", token, part(a.kept_ids, kept_before(a, token), count),
             part(b.kept_ids, kept_before(b, token), count));
}

std::string reason_of(uint8_t reason) {
  return std::string(finish_reason_name(static_cast<FinishReason>(reason)));
}

template <class T>
void add(DigestStream& digest, std::span<const T> values) {
  const uint64_t count = values.size();
  digest.update(std::as_bytes(std::span(&count, 1)));
  digest.update(std::as_bytes(values));
}

void add_made(DigestStream& digest, const RecordedSample& sample, const Piece& piece,
              const Made& made) {
  const auto begin = static_cast<size_t>(piece.begin);
  const auto count = static_cast<size_t>(piece.end - piece.begin);
  const auto top = static_cast<size_t>(sample.record.request.top_logprobs);
  const uint64_t head[] = {sample.record_id, begin, count};
  digest.update(std::as_bytes(std::span(head)));
  add(digest, part(made.tokens, begin, count));
  add(digest, part(made.logprobs, begin, count));
  add(digest, part(made.processed_logprobs, begin, count));
  add(digest, part(made.entropies, begin, count));
  add(digest, part(made.top_ids, begin * top, count * top));
  add(digest, part(made.top_logprobs, begin * top, count * top));
  add(digest, part(made.kept_counts, begin, count));
  const size_t kept = kept_before(made, begin);
  add(digest, part(made.kept_ids, kept, kept_before(made, begin + count) - kept));
  if (piece.request.report.prompt_logprobs) add(digest, made.prompt_logprobs);
}

}  // namespace

std::optional<Difference> first_difference(const RecordedSample& sample, const Piece& piece,
                                           const SampleResult& replayed) {
  const Made a = view(sample.record.completion), b = view(replayed);
  const auto top = static_cast<size_t>(sample.record.request.top_logprobs);
  Comparison both;
  if (piece.request.report.prompt_logprobs) {
    for (size_t i = 0; i < a.prompt_logprobs.size(); i++) {
      both.field("prompt_logprobs", i, part(a.prompt_logprobs, i, 1),
                 part(b.prompt_logprobs, i, 1));
    }
  }
  for (auto i = static_cast<size_t>(piece.begin); i < static_cast<size_t>(piece.end); i++) {
    if (both.found()) break;
    compare_token(both, a, b, i, top);
  }
  const auto end = static_cast<size_t>(piece.end);
  if (!replayed.error.is_ok()) both.note("error", b.tokens.size(), replayed.error.message());
  if (!piece.is_last) return both.take();
  const uint8_t reason = sample.record.completion.finish_reason;
  const auto again = static_cast<uint8_t>(replayed.reason);
  const bool ended_itself = reason <= static_cast<uint8_t>(FinishReason::stop);
  if (ended_itself && (reason != again || b.tokens.size() != end)) {
    both.note("finish_reason", end - 1,
              reason_of(reason) + " recorded, " + reason_of(again) + " replayed");
  }
  return both.take();
}

int64_t ulps_between(uint32_t a, uint32_t b) {
  const auto place = [](uint32_t bits) {
    const auto magnitude = static_cast<int64_t>(bits & 0x7fffffffu);
    return (bits >> 31) != 0 ? -magnitude : magnitude;
  };
  const int64_t distance = place(a) - place(b);
  return distance < 0 ? -distance : distance;
}

std::string describe(const Difference& difference) {
  const std::string where =
      "token " + std::to_string(difference.token) + ": " + difference.field + " ";
  if (!difference.note.empty()) return where + difference.note;
  char text[160];
  if (difference.is_float) {
    std::snprintf(text, sizeof text, "recorded 0x%08x (%.9g) replayed 0x%08x (%.9g), %lld ulps",
                  difference.recorded, std::bit_cast<float>(difference.recorded),
                  difference.replayed, std::bit_cast<float>(difference.replayed),
                  static_cast<long long>(ulps_between(difference.recorded, difference.replayed)));
  } else {
    std::snprintf(text, sizeof text, "recorded %d replayed %d",
                  static_cast<int>(difference.recorded), static_cast<int>(difference.replayed));
  }
  return where + text;
}

void add_recorded(DigestStream& digest, const RecordedSample& sample, const Piece& piece) {
  add_made(digest, sample, piece, view(sample.record.completion));
}

void add_replayed(DigestStream& digest, const RecordedSample& sample, const Piece& piece,
                  const SampleResult& replayed) {
  add_made(digest, sample, piece, view(replayed));
}

}  // namespace exact::replay
