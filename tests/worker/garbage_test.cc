// Garbage on the socket: its sender is told what is wrong, nobody else notices, nothing grows.
#include <gtest/gtest.h>
#include <zmq.h>

#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/digest.h"
#include "tests/support/expect_bits.h"
#include "tests/worker/update_steps.h"
#include "tests/worker/worker_fixture.h"

namespace exact::worker_tests {
namespace {

using ipc::Frames;

// A header whose length and checksum fit `body`: what is wrong then lies deeper.
Frames reseal(const Frames& frames, const std::string& body) {
  Frames sealed{frames.header, body};
  const auto length = static_cast<uint32_t>(body.size());
  const uint64_t checksum = digest64(std::as_bytes(std::span(body)));
  std::memcpy(sealed.header.data() + 16, &length, 4);
  std::memcpy(sealed.header.data() + 20, &checksum, 8);
  return sealed;
}

Frames with_header_byte(Frames frames, size_t index, char value) {
  frames.header.at(index) = value;
  return frames;
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return text.replace(at, what.size(), with);
}

// Any number of frames, straight from libzmq: what no client of ours can send.
class FrameSender {
 public:
  explicit FrameSender(const std::string& endpoint)
      : context_(zmq_ctx_new()), socket_(zmq_socket(context_, ZMQ_DEALER)) {
    const int linger = 2'000;
    zmq_setsockopt(socket_, ZMQ_LINGER, &linger, sizeof linger);
    const int timeout = 5'000;
    zmq_setsockopt(socket_, ZMQ_RCVTIMEO, &timeout, sizeof timeout);
    EXPECT_EQ(zmq_connect(socket_, endpoint.c_str()), 0) << zmq_strerror(zmq_errno());
  }
  ~FrameSender() {
    zmq_close(socket_);
    zmq_ctx_term(context_);
  }
  void send(const std::vector<std::string>& frames) {
    for (size_t i = 0; i < frames.size(); i++) {
      const int more = i + 1 < frames.size() ? ZMQ_SNDMORE : 0;
      EXPECT_GE(zmq_send(socket_, frames[i].data(), frames[i].size(), more), 0)
          << zmq_strerror(zmq_errno());
    }
  }
  // The ErrorReply that comes next, or a timeout.
  Status next_error() {
    std::string header(1 << 16, '\0'), body(1 << 16, '\0');
    const int header_bytes = zmq_recv(socket_, header.data(), header.size(), 0);
    if (header_bytes < 0) return Status(Code::timeout, "no answer");
    const int body_bytes = zmq_recv(socket_, body.data(), body.size(), 0);
    header.resize(static_cast<size_t>(header_bytes));
    body.resize(static_cast<size_t>(body_bytes));
    EXACT_ASSIGN(const auto decoded, ipc::decode_header(std::as_bytes(std::span(header))));
    EXPECT_EQ(decoded.request_id, 0u);
    return RawClient::read<ipc::Pong>({decoded, body}).status();
  }

 private:
  void* context_;
  void* socket_;
};

class Garbage : public testing::Test {
 protected:
  Garbage() : good_(worker_.endpoint()), bad_(worker_.endpoint()) {
    good_.hello();
    bad_.hello();
    in_flight_ = good_.post(request_);
  }
  // Another client's request, in flight all the while, has the bits of one that ran in peace.
  ~Garbage() override {
    const auto disturbed = good_.take<ipc::GenerateReply>(in_flight_);
    const auto calm = good_.call<ipc::GenerateReply>(request_);
    EXPECT_TRUE(disturbed.is_ok() && calm.is_ok());
    if (!disturbed || !calm) return;
    EXPECT_BITS_EQ(disturbed->completions.at(0).tokens, calm->completions.at(0).tokens, "");
    EXPECT_BITS_EQ(disturbed->completions.at(0).logprobs, calm->completions.at(0).logprobs, "");
  }
  // The sender is told, by the request's id where the header could be read.
  void expect_refused(const Frames& frames, uint64_t request_id, Code code,
                      const std::string& words) {
    ASSERT_TRUE(bad_.send_frames(frames).is_ok());
    const auto answer = bad_.next_answer();
    ASSERT_TRUE(answer.is_ok()) << answer.status().to_string();
    EXPECT_EQ(answer->header.request_id, request_id);
    expect_error(RawClient::read<ipc::Pong>(*answer).status(), code, words);
  }

  const ipc::Generate request_ = generate({3, 1, 4}, 250, 7);
  LocalWorker worker_{{.max_message_bytes = 1 << 20, .heartbeat_ms = 60'000}};
  RawClient good_, bad_;
  uint64_t in_flight_ = 0;
};

TEST_F(Garbage, HeaderThatCantBeReadIsAnsweredWithIdZero) {
  const Frames good = ipc::encode(ipc::Ping{}, 5);
  expect_refused({"", ""}, 0, Code::corrupt, "");
  expect_refused({good.header.substr(0, 27), good.body}, 0, Code::corrupt, "28");
  expect_refused({good.header + "x", good.body}, 0, Code::corrupt, "28");
  expect_refused(with_header_byte(good, 0, 'X'), 0, Code::corrupt, "");
  expect_refused(with_header_byte(good, 4, 9), 0, Code::contract_mismatch, "9");
}

TEST_F(Garbage, TypeThatNoClientSendsIsRefused) {
  const Frames good = ipc::encode(ipc::Ping{}, 5);
  for (const int type : {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21, 22, 23, 25, 27, 29, 30, 255}) {
    expect_refused(with_header_byte(good, 6, static_cast<char>(type)), 5, Code::invalid,
                   "message type " + std::to_string(type));
  }
}

TEST_F(Garbage, BodyThatLiesIsRefusedByWhatIsWrong) {
  const Frames good = ipc::encode(request_, 6);
  // Lengths and checksums of the frame.
  expect_refused({good.header, good.body.substr(1)}, 6, Code::corrupt, "");
  expect_refused({good.header, ""}, 6, Code::corrupt, "");
  std::string flipped = good.body;
  flipped[20] ^= 1;
  expect_refused({good.header, flipped}, 6, Code::corrupt, "");
  // Sealed anew: the fields themselves.
  expect_refused(reseal(good, good.body.substr(0, good.body.size() - 3)), 6, Code::corrupt, "");
  expect_refused(reseal(good, good.body + "abc"), 6, Code::corrupt, "");
  expect_refused(reseal(good, ""), 6, Code::corrupt, "");
  expect_refused(reseal(good, replaced(good.body, "temperature", "temperatude")), 6, Code::invalid,
                 "temperatude");
  // A count of 2^61 prompt ids.
  std::string lying = good.body;
  lying[lying.find("prompt") + 6 + 7] = '\x20';
  expect_refused(reseal(good, lying), 6, Code::corrupt, "");
}

TEST_F(Garbage, AllowThatNobodyWaitsForIsRefused) {
  ipc::Allow allow{12'345, 0, 0, {1}};
  expect_refused(ipc::encode(allow, 6), 6, Code::not_found, "target_request_id 12345");
  allow.target_request_id = in_flight_;  // another client's
  expect_refused(ipc::encode(allow, 7), 7, Code::not_found, "no request of this client");
  const Frames good = ipc::encode(allow, 8);
  expect_refused(reseal(good, good.body.substr(0, good.body.size() - 1)), 8, Code::corrupt, "ids");
  expect_refused(reseal(good, replaced(good.body, "ids", "idz")), 8, Code::invalid, "'idz'");
}

TEST_F(Garbage, WrongNumberOfFramesIsAnsweredAndForgotten) {
  FrameSender sender(worker_.endpoint());
  const Frames good = ipc::encode(ipc::Ping{}, 5);
  for (const std::vector<std::string>& frames :
       {std::vector<std::string>{good.header}, std::vector<std::string>{""},
        std::vector<std::string>{good.header, good.body, ""},
        std::vector<std::string>(50, good.header)}) {
    sender.send(frames);
    EXPECT_EQ(sender.next_error().code(), Code::corrupt) << frames.size() << " frames";
  }
}

TEST_F(Garbage, OversizedMessageCutsItsSendersConnectionAlone) {
  FrameSender sender(worker_.endpoint());
  sender.send({std::string(2 << 20, 'x'), ""});
  EXPECT_EQ(bad_.status().clients, 2);
  EXPECT_TRUE(bad_.call<ipc::Pong>(ipc::Ping{}).is_ok());
}

TEST_F(Garbage, SegmentOfAnUpdateMayHoldAnything) {
  std::mt19937_64 random(20261124);
  for (int round = 0; round < 20; round++) {
    UpdateSteps steps(bad_, worker_.config(), 2, 5'000);
    ASSERT_TRUE(steps.begin().is_ok());
    steps.write(0);
    // The header lies before the payload.
    const std::span<std::byte> payload = steps.segment().begin_bucket(0);
    steps.write(0);
    const size_t at = random() % (ipc::kBucketHeaderBytes + payload.size());
    payload.data()[static_cast<ptrdiff_t>(at) - static_cast<ptrdiff_t>(ipc::kBucketHeaderBytes)] ^=
        std::byte{0x10};
    EXPECT_EQ(steps.announce(0).status().code(), Code::corrupt) << "byte " << at;
    EXPECT_FALSE(segment_exists(steps.ready.segment_name));
  }
  EXPECT_EQ(bad_.status().weight_version, 1u);
}

// Resident bytes of this process.
int64_t resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  long long total = 0, resident = 0;
  EXPECT_EQ(std::fscanf(file, "%lld %lld", &total, &resident), 2);
  std::fclose(file);
  return resident * ::sysconf(_SC_PAGESIZE);
}

// Every list has something in it; what is left whole of it is refused by its reply mode.
ipc::Generate wide_generate() {
  ipc::Generate request = generate({1, 2}, 4, 1);
  request.logit_bias = {{1, 0.5f}, {2, -0.5f}};
  request.allowed_ids = {1, 2, 3};
  request.banned_ids = {4};
  request.stop_sequences = {{{1, 2}}, {{3}}};
  request.forced_ids = {1};
  request.reply_mode = 3;
  request.deadline_ms = 1000;
  return request;
}

Frames random_garbage(std::mt19937_64& random) {
  static const Frames kSeeds[] = {
      ipc::encode(ipc::Hello{"x", ""}, 1),     ipc::encode(generate({1, 2}, 4, 1), 2),
      ipc::encode(ipc::Score{{1, 2, 3}}, 3),   ipc::encode(ipc::UpdateBegin{}, 4),
      ipc::encode(ipc::UpdateBucket{9, 9}, 5), ipc::encode(ipc::Allow{2, 0, 0, {1, 2, 3}}, 6),
      ipc::encode(wide_generate(), 7)};
  Frames frames = kSeeds[random() % std::size(kSeeds)];
  std::string& target = random() % 2 == 0 && !frames.body.empty() ? frames.body : frames.header;
  switch (random() % 3) {
    case 0:
      target[random() % target.size()] ^= static_cast<char>(1 + random() % 255);
      break;
    case 1:
      target.resize(random() % target.size());
      break;
    default:
      target.append(1 + random() % 64, static_cast<char>(random()));
  }
  return random() % 4 == 0 && frames.header.size() == ipc::kHeaderBytes
             ? reseal(frames, frames.body)
             : frames;
}

TEST_F(Garbage, HundredThousandMessagesLeaveMemoryAsItWas) {
  constexpr int kWarmUp = 10'000, kMessages = 100'000;
  // Buffers of sockets and the allocator's own; a leak of 1 KiB a message would be 100 MiB.
  constexpr int64_t kAllowedBytes = 16ll << 20;
  constexpr uint64_t kSeed = 7;
  std::mt19937_64 random(kSeed);
  int64_t before = 0;
  int answered = 0;
  for (int i = 0; i < kWarmUp + kMessages; i++) {
    if (i == kWarmUp) before = resident_bytes();
    ASSERT_TRUE(bad_.send_frames(random_garbage(random)).is_ok())
        << "seed " << kSeed << " at " << i;
    // One answer each, read as they come, so that the worker's queue for us stays short.
    if (i % 64 != 63) continue;
    for (int j = 0; j < 64; j++) {
      ASSERT_TRUE(bad_.next_answer().is_ok()) << "seed " << kSeed << " at " << i;
      answered++;
    }
  }
  EXPECT_GE(answered, kMessages);
  const int64_t grown = resident_bytes() - before;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // The sanitizers keep what is freed aside; there it is the leak check that watches.
  EXPECT_LT(grown, kAllowedBytes) << "seed " << kSeed;
#else
  (void)kAllowedBytes;
#endif
  std::cout << answered << " answers, memory grew by " << grown / 1024 << " KiB\n";
}

}  // namespace
}  // namespace exact::worker_tests
