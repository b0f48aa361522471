#include "ipc/codec.h"

#include <algorithm>
#include <new>
#include <utility>

#include "ipc/bounded_archive.h"
#include "ipc/raw_numbers.h"
#include "kernels/base/digest.h"

namespace exact::ipc {
namespace {

Status body_error(MessageType type, Code code, const std::string& what) {
  return Status(code, std::string(message_type_name(type)) + ": " + what);
}

Status check_body(MessageType expected, const Header& header, std::span<const std::byte> body) {
  if (header.type != expected) {
    return body_error(expected, Code::invalid,
                      "a message of type " + std::string(message_type_name(header.type)) +
                          " can't be read as this one");
  }
  if (body.size() != header.body_bytes) {
    return body_error(expected, Code::corrupt,
                      "the body has " + std::to_string(body.size()) + " bytes, its header says " +
                          std::to_string(header.body_bytes));
  }
  if (digest64(body) != header.body_checksum) {
    return body_error(expected, Code::corrupt,
                      "the body's checksum (xxh3-64) is not its header's: send it again");
  }
  return {};
}

}  // namespace

std::string_view message_type_name(MessageType type) {
  switch (type) {
    case MessageType::error_reply:
      return "ErrorReply";
    case MessageType::hello:
      return "Hello";
    case MessageType::hello_reply:
      return "HelloReply";
    case MessageType::ping:
      return "Ping";
    case MessageType::pong:
      return "Pong";
    case MessageType::generate:
      return "Generate";
    case MessageType::generate_reply:
      return "GenerateReply";
    case MessageType::score:
      return "Score";
    case MessageType::score_reply:
      return "ScoreReply";
    case MessageType::cancel:
      return "Cancel";
    case MessageType::cancel_reply:
      return "CancelReply";
    case MessageType::status:
      return "StatusQuery";
    case MessageType::status_reply:
      return "StatusReply";
    case MessageType::update_begin:
      return "UpdateBegin";
    case MessageType::update_ready:
      return "UpdateReady";
    case MessageType::update_bucket:
      return "UpdateBucket";
    case MessageType::update_bucket_done:
      return "UpdateBucketDone";
    case MessageType::update_commit:
      return "UpdateCommit";
    case MessageType::update_committed:
      return "UpdateCommitted";
    case MessageType::update_abort:
      return "UpdateAbort";
    case MessageType::update_aborted:
      return "UpdateAborted";
    case MessageType::sample_done:
      return "SampleDone";
    case MessageType::token_chunk:
      return "TokenChunk";
    case MessageType::mask_wanted:
      return "MaskWanted";
    case MessageType::allow:
      return "Allow";
    case MessageType::allow_reply:
      return "AllowReply";
    case MessageType::sleep:
      return "Sleep";
    case MessageType::sleep_reply:
      return "SleepReply";
    case MessageType::wake:
      return "Wake";
    case MessageType::wake_reply:
      return "WakeReply";
  }
  return "unknown";
}

template <class Message>
Frames encode(const Message& message, uint64_t request_id) {
  Frames frames;
  BodyWriter writer(frames.body);
  writer(message);
  // A body too large for its length field is too large for every receiver's limit too: it is
  // refused as such, not by a check here.
  const auto body_bytes = static_cast<uint32_t>(std::min<size_t>(frames.body.size(), UINT32_MAX));
  frames.header.reserve(kHeaderBytes);
  put_number(frames.header, kMagic);
  put_number(frames.header, kProtocolVersion);
  put_number(frames.header, Message::kType);
  put_number(frames.header, request_id);
  put_number(frames.header, body_bytes);
  put_number(frames.header, digest64(std::as_bytes(std::span(frames.body))));
  EXACT_CHECK(frames.header.size() == kHeaderBytes, "a header of another size");
  return frames;
}

Result<Header> decode_header(std::span<const std::byte> frame) {
  if (frame.size() != kHeaderBytes) {
    return Status(Code::corrupt, "a header frame of " + std::to_string(frame.size()) +
                                     " bytes: it must have " + std::to_string(kHeaderBytes));
  }
  if (get_number<uint32_t>(frame, 0) != kMagic) {
    return Status(Code::corrupt,
                  "the header does not begin with 'EXCT': is the other side an "
                  "exact-rollout program?");
  }
  const auto version = get_number<uint16_t>(frame, 4);
  if (version != kProtocolVersion) {
    return Status(Code::contract_mismatch, "the other side speaks protocol version " +
                                               std::to_string(version) + ", this side version " +
                                               std::to_string(kProtocolVersion) +
                                               ": install the same release on both sides");
  }
  Header header;
  header.type = static_cast<MessageType>(get_number<uint16_t>(frame, 6));
  header.request_id = get_number<uint64_t>(frame, 8);
  header.body_bytes = get_number<uint32_t>(frame, 16);
  header.body_checksum = get_number<uint64_t>(frame, 20);
  return header;
}

template <class Message>
Result<Message> decode_body(const Header& header, std::span<const std::byte> body) {
  EXACT_RETURN_IF_ERROR(check_body(Message::kType, header, body));
  try {
    Message message;
    BodyReader reader(body);
    reader(message);
    reader.expect_end();
    return message;
  } catch (const DecodeError& error) {
    return body_error(Message::kType, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return body_error(Message::kType, Code::exhausted,
                      "no memory for a body of " + std::to_string(body.size()) + " bytes");
  }
}

#define EXACT_INSTANTIATE(Message)                           \
  template Frames encode<Message>(const Message&, uint64_t); \
  template Result<Message> decode_body<Message>(const Header&, std::span<const std::byte>);
EXACT_INSTANTIATE(ErrorReply)
EXACT_INSTANTIATE(Hello)
EXACT_INSTANTIATE(HelloReply)
EXACT_INSTANTIATE(Ping)
EXACT_INSTANTIATE(Pong)
EXACT_INSTANTIATE(Generate)
EXACT_INSTANTIATE(GenerateReply)
EXACT_INSTANTIATE(Score)
EXACT_INSTANTIATE(ScoreReply)
EXACT_INSTANTIATE(Cancel)
EXACT_INSTANTIATE(CancelReply)
EXACT_INSTANTIATE(StatusQuery)
EXACT_INSTANTIATE(StatusReply)
EXACT_INSTANTIATE(UpdateBegin)
EXACT_INSTANTIATE(UpdateReady)
EXACT_INSTANTIATE(UpdateBucket)
EXACT_INSTANTIATE(UpdateBucketDone)
EXACT_INSTANTIATE(UpdateCommit)
EXACT_INSTANTIATE(UpdateCommitted)
EXACT_INSTANTIATE(UpdateAbort)
EXACT_INSTANTIATE(UpdateAborted)
EXACT_INSTANTIATE(SampleDone)
EXACT_INSTANTIATE(TokenChunk)
EXACT_INSTANTIATE(MaskWanted)
EXACT_INSTANTIATE(Allow)
EXACT_INSTANTIATE(AllowReply)
EXACT_INSTANTIATE(Sleep)
EXACT_INSTANTIATE(SleepReply)
EXACT_INSTANTIATE(Wake)
EXACT_INSTANTIATE(WakeReply)
#undef EXACT_INSTANTIATE

}  // namespace exact::ipc
