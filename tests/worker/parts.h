// parts.h owns how a test reads a rollout that comes in parts, and what must hold of them: order,
// no gap, sums.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/support/expect_bits.h"
#include "tests/worker/worker_fixture.h"

namespace exact::worker_tests {

struct Parts {
  std::map<int32_t, ipc::TokenChunk> sums;  // the chunks of each sample, added up
  std::map<int32_t, ipc::Completion> samples;
  std::vector<ipc::MaskWanted> masks;
  size_t chunks = 0;
  bool ended = false;
  Status error;  // of an ErrorReply
};

template <class T>
T part_of(const Answer& answer) {
  auto part = RawClient::read<T>(answer);
  EXPECT_TRUE(part.is_ok()) << part.status().to_string();
  return part.is_ok() ? *part : T{};
}

// Takes in one part or the answer of a rollout, and checks what is promised of their order.
inline void take_part(const Answer& answer, Parts& parts) {
  EXPECT_FALSE(parts.ended) << "a part after the answer";
  switch (answer.header.type) {
    case ipc::MessageType::token_chunk: {
      const auto chunk = part_of<ipc::TokenChunk>(answer);
      EXPECT_FALSE(chunk.tokens.empty());
      EXPECT_FALSE(parts.samples.contains(chunk.sample_index))
          << "a chunk of a sample that is done";
      parts.chunks++;
      auto& sum = parts.sums[chunk.sample_index];
      EXPECT_EQ(chunk.begin, static_cast<int32_t>(sum.tokens.size()));
      EXPECT_EQ(chunk.logprobs.size(), chunk.tokens.size());
      EXPECT_EQ(chunk.processed_logprobs.size(), chunk.tokens.size());
      sum.append(chunk);
      return;
    }
    case ipc::MessageType::sample_done: {
      const auto done = part_of<ipc::SampleDone>(answer);
      EXPECT_EQ(done.contract_id.size(), 32u);
      EXPECT_TRUE(parts.samples.emplace(done.completion.sample_index, done.completion).second);
      return;
    }
    case ipc::MessageType::mask_wanted:
      parts.masks.push_back(part_of<ipc::MaskWanted>(answer));
      return;
    default:
      parts.ended = true;
      const auto reply = RawClient::read<ipc::GenerateReply>(answer);
      parts.error = reply.status();
      if (reply) {
        EXPECT_TRUE(reply->completions.empty());
      }
  }
}

// Everything that belongs to one request of a client with nothing else in flight.
inline Parts take_parts(RawClient& client, uint64_t request_id) {
  Parts parts;
  while (!parts.ended) {
    const auto answer = client.next_answer();
    EXPECT_TRUE(answer.is_ok()) << answer.status().to_string();
    if (!answer) break;
    EXPECT_EQ(answer->header.request_id, request_id);
    take_part(*answer, parts);
  }
  return parts;
}

inline void expect_sums(const Parts& parts) {
  for (const auto& [index, completion] : parts.samples) {
    const auto found = parts.sums.find(index);
    const ipc::TokenChunk sum = found == parts.sums.end() ? ipc::TokenChunk{} : found->second;
    EXPECT_BITS_EQ(sum.tokens, completion.tokens, index);
    EXPECT_BITS_EQ(sum.logprobs, completion.logprobs, index);
    EXPECT_BITS_EQ(sum.processed_logprobs, completion.processed_logprobs, index);
  }
}

inline void expect_same(const ipc::Completion& a, const ipc::Completion& b) {
  EXPECT_EQ(ipc::encode(ipc::SampleDone{"", a}, 1).body,
            ipc::encode(ipc::SampleDone{"", b}, 1).body)
      << "sample " << a.sample_index;
}

inline ipc::Generate in_mode(ipc::Generate request, ipc::ReplyMode mode) {
  request.reply_mode = static_cast<uint8_t>(mode);
  return request;
}

}  // namespace exact::worker_tests
