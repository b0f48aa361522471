// Mutations of real messages. Whatever comes, decoding ends in a value or a Status, allocates in
// proportion to what came, and accepts a body only if encoding gives that very body again.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "ipc/codec.h"
#include "kernels/base/digest.h"
#include "tests/ipc/allocations.h"
#include "tests/ipc/random_messages.h"

namespace exact::ipc {
namespace {

constexpr uint64_t kSeed = 20240607;
constexpr int kMutationsPerMessage = 10'000;  // of 26 messages

// Bytes with nothing readable behind them, so that a sanitizer sees a read beyond the end.
std::vector<std::byte> exact_bytes(const std::string& text) {
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

// Decodes `text` under a header that is right for it. True when it was accepted.
template <class Message>
bool decode_checked(const std::string& text) {
  const std::vector<std::byte> body = exact_bytes(text);
  const Header header{Message::kType, 1, static_cast<uint32_t>(body.size()), digest64(body)};
  const uint64_t before = allocated_bytes();
  const Result<Message> result = decode_body<Message>(header, body);
  const uint64_t allocated = allocated_bytes() - before;
  EXPECT_LE(allocated, 16 * body.size() + 8192) << message_type_name(Message::kType);
  if (result.is_ok()) {
    EXPECT_EQ(encode(*result, 1).body, text) << message_type_name(Message::kType);
    return true;
  }
  const Code code = result.status().code();
  EXPECT_TRUE(code == Code::corrupt || code == Code::invalid) << result.status().to_string();
  return false;
}

void overwrite(std::string& text, size_t at, uint64_t value) {
  std::memcpy(text.data() + at, &value, std::min(sizeof(value), text.size() - at));
}

// Counts worth lying about: around what remains, powers of two, and what overflows when multiplied.
uint64_t lying_count(Random& random, size_t bytes) {
  switch (random.below(4)) {
    case 0:
      return random.below(bytes + 2);
    case 1:
      return uint64_t{1} << random.below(64);
    case 2:
      return (uint64_t{1} << 62) + random.below(4);
    default:
      return UINT64_MAX - random.below(16);
  }
}

std::string mutated(std::string text, Random& random) {
  const uint64_t changes = 1 + random.below(3);
  for (uint64_t change = 0; change < changes; ++change) {
    const size_t at = random.below(text.size() + 1);
    switch (random.below(7)) {
      case 0:
        text.resize(at);
        break;
      case 1:
        text.insert(at, random.bytes(1 + random.below(9)));
        break;
      case 2:
        text.erase(at, 1 + random.below(9));
        break;
      case 3:
        text += text.substr(at);
        break;
      case 4:
        if (at < text.size()) overwrite(text, at, lying_count(random, text.size()));
        break;
      case 5:
        text = random.bytes(random.below(64));
        break;
      default:
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << random.below(8)));
    }
  }
  return text;
}

TEST(CodecFuzz, MutationsEndInAValueOrAStatus) {
  uint64_t accepted = 0, refused = 0;
  for_each_message([&]<class Message>() {
    Random random(kSeed + static_cast<uint64_t>(Message::kType));
    for (int mutation = 0; mutation < kMutationsPerMessage && !::testing::Test::HasFailure();
         ++mutation) {
      const uint64_t seed = random.next();
      Random changes(seed);
      const std::string body = encode(random_message<Message>(seed), 1).body;
      SCOPED_TRACE("seed " + std::to_string(seed));
      decode_checked<Message>(mutated(body, changes)) ? ++accepted : ++refused;
    }
  });
  EXPECT_GE(accepted + refused, 200'000u);
  EXPECT_GE(accepted, 1'000u) << "flips inside values must be accepted as other values";
  EXPECT_GE(refused, 100'000u);
}

TEST(CodecFuzz, EveryTruncationIsRefused) {
  for_each_message([]<class Message>() {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      const std::string body = encode(random_message<Message>(seed), 1).body;
      for (size_t bytes = 0; bytes < body.size(); ++bytes) {
        EXPECT_FALSE(decode_checked<Message>(body.substr(0, bytes)))
            << message_type_name(Message::kType) << ", seed " << seed << ", " << bytes << " of "
            << body.size() << " bytes";
      }
    }
  });
}

TEST(CodecFuzz, EveryByteChangedUnderTheOldHeaderIsCorrupt) {
  for_each_message([]<class Message>() {
    const Frames frames = encode(random_message<Message>(kSeed), 1);
    const Header header = *decode_header(std::as_bytes(std::span(frames.header)));
    for (size_t at = 0; at < frames.body.size(); ++at) {
      std::string body = frames.body;
      body[at] = static_cast<char>(body[at] ^ 0x10);
      EXPECT_EQ(decode_body<Message>(header, exact_bytes(body)).status().code(), Code::corrupt)
          << message_type_name(Message::kType) << ", byte " << at;
    }
  });
}

TEST(CodecFuzz, RandomHeadersEndInAValueOrAStatus) {
  Random random(kSeed);
  for (int round = 0; round < 50'000; ++round) {
    std::string header = encode(Ping{}, random.next()).header;
    if (random.below(2) == 0) header = random.bytes(random.below(64));
    for (uint64_t flips = random.below(4); flips > 0 && !header.empty(); --flips) {
      char& byte = header[random.below(header.size())];
      byte = static_cast<char>(byte ^ (1 << random.below(8)));
    }
    const auto decoded = decode_header(exact_bytes(header));
    if (decoded.is_ok()) continue;
    const Code code = decoded.status().code();
    EXPECT_TRUE(code == Code::corrupt || code == Code::contract_mismatch) << "round " << round;
  }
}

}  // namespace
}  // namespace exact::ipc
