// codec.h owns the bytes of a message. A message travels as two ZeroMQ frames:
//   header  28 bytes, little-endian: magic u32, protocol version u16, type u16, request_id u64,
//           body bytes u32, body checksum u64 (xxh3-64)
//   body    the struct's fields in order; each is its name (u8 length, bytes), then its value:
//           little-endian numbers; strings and vectors are a u64 count, then elements
// Names on the wire make every refusal exact: "Generate: unknown field 'temprature' where
// 'temperature' belongs". Decoding allocates no more than a small multiple of the bytes that came.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "ipc/messages.h"
#include "kernels/base/result.h"

namespace exact::ipc {

inline constexpr size_t kHeaderBytes = 28;

std::string_view message_type_name(MessageType type);  // "Generate"; "unknown" for other values

struct Header {
  MessageType type{};
  uint64_t request_id = 0;  // chosen by the client, echoed in the answer
  uint32_t body_bytes = 0;
  uint64_t body_checksum = 0;
};

struct Frames {
  std::string header;
  std::string body;
};

// Explicitly instantiated in codec.cc for every struct of messages.h.
template <class Message>
Frames encode(const Message& message, uint64_t request_id);

// corrupt: too short, wrong magic; contract_mismatch: another protocol version (says both).
Result<Header> decode_header(std::span<const std::byte> frame);

// corrupt: wrong length, checksum, truncated, lengths that lie, trailing bytes; invalid: an unknown
// field (by name).
template <class Message>
Result<Message> decode_body(const Header& header, std::span<const std::byte> body);

}  // namespace exact::ipc
