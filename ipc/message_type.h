// message_type.h owns the number of each message, and the version of the protocol they belong to.
#pragma once

#include <cstdint>

namespace exact::ipc {

inline constexpr uint32_t kMagic = 0x54435845;  // "EXCT", little-endian
inline constexpr uint16_t kProtocolVersion = 3;

// Values travel on the wire: append, never renumber.
enum class MessageType : uint16_t {
  error_reply = 0,
  hello = 1,
  hello_reply = 2,
  ping = 3,
  pong = 4,
  generate = 5,
  generate_reply = 6,
  score = 7,
  score_reply = 8,
  cancel = 9,
  cancel_reply = 10,
  status = 11,
  status_reply = 12,
  update_begin = 13,
  update_ready = 14,
  update_bucket = 15,
  update_bucket_done = 16,
  update_commit = 17,
  update_committed = 18,
  update_abort = 19,
  update_aborted = 20,
  sample_done = 21,
  token_chunk = 22,
  mask_wanted = 23,
  allow = 24,
  allow_reply = 25,
  sleep = 26,
  sleep_reply = 27,
  wake = 28,
  wake_reply = 29,
};

}  // namespace exact::ipc
