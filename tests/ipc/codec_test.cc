// The bytes of messages: what goes in comes out, and each refusal names what is wrong.
#include "ipc/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "ipc/bounded_archive.h"
#include "kernels/base/digest.h"
#include "tests/ipc/allocations.h"
#include "tests/ipc/random_messages.h"

namespace exact::ipc {
namespace {

using ::testing::HasSubstr;
using namespace std::string_literals;

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// A header that is right for `body`, so that a refusal is the body's own.
Header header_for(MessageType type, const std::string& body) {
  return {type, 7, static_cast<uint32_t>(body.size()), digest64(as_bytes(body))};
}

template <class Message>
Result<Message> decode(const std::string& body) {
  return decode_body<Message>(header_for(Message::kType, body), as_bytes(body));
}

std::string u64(uint64_t value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Codec, EveryMessageComesBackAsItWent) {
  for_each_message([]<class Message>() {
    for (uint64_t seed = 1; seed <= 200; ++seed) {
      const Frames frames = encode(random_message<Message>(seed), seed);
      const auto header = decode_header(as_bytes(frames.header));
      ASSERT_TRUE(header.is_ok()) << header.status().to_string();
      EXPECT_EQ(header->type, Message::kType);
      EXPECT_EQ(header->request_id, seed);
      const auto back = decode_body<Message>(*header, as_bytes(frames.body));
      ASSERT_TRUE(back.is_ok()) << "seed " << seed << ": " << back.status().to_string();
      EXPECT_EQ(encode(*back, seed).body, frames.body)
          << message_type_name(Message::kType) << ", seed " << seed;
    }
  });
}

TEST(Codec, FieldsKeepTheirValues) {
  Generate sent;
  sent.prompt = {1, -2, INT32_MAX};
  sent.temperature = -0.0f;
  sent.seed = UINT64_MAX;
  const auto came = decode<Generate>(encode(sent, 1).body);
  ASSERT_TRUE(came.is_ok()) << came.status().to_string();
  EXPECT_EQ(came->prompt, sent.prompt);
  EXPECT_TRUE(std::signbit(came->temperature));
  EXPECT_EQ(came->seed, UINT64_MAX);
  EXPECT_TRUE(came->stop_ids.empty());
}

TEST(Codec, WhatARolloutMayAskForKeepsItsValues) {
  Generate sent;
  sent.logit_bias = {{7, -0.0f}, {9, 2.5f}};
  sent.stop_sequences = {{{1, 2}}, {{}}, {{3}}};
  sent.ignore_eos = true;
  sent.reply_mode = static_cast<uint8_t>(ReplyMode::tokens);
  sent.deadline_ms = -5;  // ranges are the worker's to judge
  const auto came = decode<Generate>(encode(sent, 1).body);
  ASSERT_TRUE(came.is_ok()) << came.status().to_string();
  ASSERT_EQ(came->logit_bias.size(), 2u);
  EXPECT_EQ(came->logit_bias[0].token, 7);
  EXPECT_TRUE(std::signbit(came->logit_bias[0].bias));
  EXPECT_EQ(came->logit_bias[1].bias, 2.5f);
  ASSERT_EQ(came->stop_sequences.size(), 3u);
  EXPECT_EQ(came->stop_sequences[0].ids, (std::vector<int32_t>{1, 2}));
  EXPECT_TRUE(came->stop_sequences[1].ids.empty());
  EXPECT_TRUE(came->ignore_eos);
  EXPECT_FALSE(came->masked);
  EXPECT_EQ(came->reply_mode, 2);
  EXPECT_EQ(came->deadline_ms, -5);
}

TEST(Codec, ChunksAppendedAreOneChunk) {
  TokenChunk whole{3, 10, {1, 2}, {-1.0f, -2.0f}, {-0.5f, -0.25f}};
  whole.append({3, 12, {4}, {-3.0f}, {-4.0f}});
  EXPECT_EQ(
      encode(whole, 1).body,
      encode(TokenChunk{3, 10, {1, 2, 4}, {-1.0f, -2.0f, -3.0f}, {-0.5f, -0.25f, -4.0f}}, 1).body);
}

TEST(Codec, BytesAreWhatTheProtocolSays) {
  Score score;
  score.tokens = {3, -1};
  const Frames frames = encode(score, 0x0102030405060708);
  EXPECT_EQ(frames.body, "\x06tokens\x02\0\0\0\0\0\0\0\x03\0\0\0\xff\xff\xff\xff"s);
  EXPECT_EQ(frames.header.substr(0, 20),
            "EXCT\x03\0\x07\0\x08\x07\x06\x05\x04\x03\x02\x01\x17\0\0\0"s);
  EXPECT_EQ(frames.header.substr(20), "\x0a\xd0\x0c\xb4\xd4\x61\x60\xcf"s);

  CancelReply found;
  found.found = true;
  EXPECT_EQ(encode(found, 1).body,
            "\x05"
            "found\x01"s);
  EXPECT_EQ(encode(Ping{}, 1).body, "");
  ErrorReply error;
  error.code = 4;
  error.message = "hm";
  EXPECT_EQ(encode(error, 1).body,
            "\x04"
            "code\x04\x07message\x02\0\0\0\0\0\0\0hm"s);
}

TEST(Codec, EveryTypeHasItsOwnNameAndNumber) {
  std::set<std::string_view> names;
  std::set<uint16_t> numbers;
  for_each_message([&]<class Message>() {
    names.insert(message_type_name(Message::kType));
    numbers.insert(static_cast<uint16_t>(Message::kType));
  });
  EXPECT_EQ(names.size(), 30u);
  EXPECT_EQ(numbers.size(), 30u);
  EXPECT_EQ(*numbers.rbegin(), 29u);
  EXPECT_FALSE(names.contains("unknown"));
  EXPECT_EQ(message_type_name(static_cast<MessageType>(999)), "unknown");
}

TEST(Codec, HeaderOfAnotherLengthOrMagicIsCorrupt) {
  const std::string header = encode(Ping{}, 1).header;
  for (size_t bytes = 0; bytes < header.size(); ++bytes) {
    EXPECT_EQ(decode_header(as_bytes(header.substr(0, bytes))).status().code(), Code::corrupt);
  }
  EXPECT_EQ(decode_header(as_bytes(header + "x")).status().code(), Code::corrupt);
  for (size_t byte = 0; byte < 4; ++byte) {
    std::string other = header;
    other[byte] = static_cast<char>(other[byte] ^ 1);
    EXPECT_EQ(decode_header(as_bytes(other)).status().code(), Code::corrupt);
  }
}

TEST(Codec, AnotherProtocolVersionNamesBoth) {
  std::string header = encode(Ping{}, 1).header;
  header[4] = 9;
  const Status status = decode_header(as_bytes(header)).status();
  EXPECT_EQ(status.code(), Code::contract_mismatch);
  EXPECT_THAT(status.message(), HasSubstr("version 9"));
  EXPECT_THAT(status.message(), HasSubstr("version 3"));
}

TEST(Codec, UnknownTypeStillHasAHeaderToAnswer) {
  std::string header = encode(Ping{}, 77).header;
  header[6] = 99;
  const auto decoded = decode_header(as_bytes(header));
  ASSERT_TRUE(decoded.is_ok());
  EXPECT_EQ(decoded->request_id, 77u);
  EXPECT_EQ(message_type_name(decoded->type), "unknown");
}

TEST(Codec, BodyThatIsNotItsHeadersIsRefused) {
  const Frames frames = encode(random_message<Generate>(1), 1);
  const Header header = *decode_header(as_bytes(frames.header));
  EXPECT_EQ(decode_body<Score>(header, as_bytes(frames.body)).status().code(), Code::invalid);
  EXPECT_EQ(decode_body<Generate>(header, as_bytes(frames.body + "x")).status().code(),
            Code::corrupt);
  std::string flipped = frames.body;
  flipped.back() = static_cast<char>(flipped.back() ^ 0x80);
  const Status status = decode_body<Generate>(header, as_bytes(flipped)).status();
  EXPECT_EQ(status.code(), Code::corrupt);
  EXPECT_THAT(status.message(), HasSubstr("checksum"));
}

TEST(Codec, MisspeltFieldIsNamedWithTheRightOne) {
  const std::string body = encode(Generate{}, 1).body;
  const Status status =
      decode<Generate>(replaced(body, "\x0btemperature", "\x0atemprature")).status();
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_THAT(status.message(), HasSubstr("Generate: unknown field 'temprature' where "
                                          "'temperature' belongs"));
}

TEST(Codec, FieldsInAnotherOrderAreRefused) {
  const std::string swapped =
      "\x0b"
      "contract_id" +
      u64(0) +
      "\x06"
      "client" +
      u64(0);
  EXPECT_THAT(decode<Hello>(swapped).status().message(),
              HasSubstr("unknown field 'contract_id' where 'client' belongs"));
}

TEST(Codec, FieldNamesFromTheWireAreSafeToLog) {
  const Status status = decode<Score>("\x06\x1b[2J\n\xff").status();
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_THAT(status.message(), HasSubstr("'?[2J"
                                          "?"
                                          "?'"));
  const Status longest = decode<Score>("\xff" + std::string(255, 'a')).status();
  EXPECT_LT(longest.message().size(), 250u);
}

TEST(Codec, FieldAfterTheLastIsNamed) {
  const std::string body = encode(Score{}, 1).body;
  const Status named = decode<Score>(body +
                                     "\x05"
                                     "extra" +
                                     u64(0))
                           .status();
  EXPECT_EQ(named.code(), Code::invalid);
  EXPECT_THAT(named.message(), HasSubstr("unknown field 'extra' after the last field"));
  const Status bytes = decode<Score>(body + "\x05\x01"s).status();
  EXPECT_EQ(bytes.code(), Code::corrupt);
  EXPECT_THAT(bytes.message(), HasSubstr("2 bytes after the last field"));
  EXPECT_EQ(decode<Ping>("x").status().code(), Code::corrupt);
}

TEST(Codec, TruthValueMustBeZeroOrOne) {
  std::string body = encode(CancelReply{}, 1).body;
  body.back() = 2;
  const Status status = decode<CancelReply>(body).status();
  EXPECT_EQ(status.code(), Code::corrupt);
  EXPECT_THAT(status.message(), HasSubstr("'found' is a truth value of 2"));
}

TEST(Codec, CountsThatLieAllocateAlmostNothing) {
  const auto refuse = []<class Message>(const std::string& body) {
    const Header header = header_for(Message::kType, body);
    const uint64_t before = allocated_bytes();
    const Status status = decode_body<Message>(header, as_bytes(body)).status();
    EXPECT_EQ(status.code(), Code::corrupt) << status.to_string();
    EXPECT_LT(allocated_bytes() - before, 4096u) << status.to_string();
  };
  for (const uint64_t count : {uint64_t{1}, uint64_t{1} << 31, uint64_t{1} << 40, uint64_t{1} << 62,
                               (uint64_t{1} << 62) + 1, UINT64_MAX}) {
    refuse.operator()<Score>("\x06tokens" + u64(count));
    refuse.operator()<Score>("\x06tokens" + u64(count) + "abc");
    refuse.operator()<Hello>(
        "\x06"
        "client" +
        u64(count));
  }
  // Structs: the count fits the bytes, but the first element is not there.
  const std::string completions =
      encode(GenerateReply{}, 1).body.substr(0, encode(GenerateReply{}, 1).body.size() - 8);
  refuse.operator()<GenerateReply>(completions + u64(uint64_t{1} << 40) + std::string(8, 'x'));
  const std::string body = completions + u64(60'000) + std::string(60'000, '\0');
  const uint64_t before = allocated_bytes();
  EXPECT_FALSE(decode<GenerateReply>(body).is_ok());
  EXPECT_LT(allocated_bytes() - before, 4096u);
}

TEST(Codec, MoreStructsThanTheLimitAreRefused) {
  UpdateBegin begin;
  begin.tensors.resize(kMaxStructs);
  EXPECT_TRUE(decode<UpdateBegin>(encode(begin, 1).body).is_ok());
  begin.tensors.emplace_back();
  const Status status = decode<UpdateBegin>(encode(begin, 1).body).status();
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_THAT(status.message(), HasSubstr("'tensors' has 65537 elements, the limit is 65536"));
}

struct Nest {
  std::vector<Nest> inner;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(inner));
  }
};

Nest nest_of_depth(int depth) {
  Nest nest;
  if (depth > 0) nest.inner.push_back(nest_of_depth(depth - 1));
  return nest;
}

TEST(BoundedArchive, DepthIsBounded) {
  const auto read = [](int depth) {
    std::string body;
    BodyWriter writer(body);
    writer(nest_of_depth(depth));
    BodyReader reader(as_bytes(body));
    Nest nest;
    reader(nest);
    reader.expect_end();
  };
  EXPECT_NO_THROW(read(kMaxDepth - 1));
  EXPECT_THROW(read(kMaxDepth), DecodeError);
}

}  // namespace
}  // namespace exact::ipc
