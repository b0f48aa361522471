// frame.h owns what stands before each record on disk, 48 bytes, little-endian:
//
//    0 u32 magic "EXJR"     4 u16 format version    6 u16 kind (RecordKind)
//    8 u64 record id       16 u64 time              24 u64 bytes of the body
//   32 u64 xxh3-64 of the body                      40 u64 xxh3-64 of the 40 bytes before
//
// A reader trusts a length only under the header's own checksum, and then only up to the limit and
// to what the file has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "journal/record.h"
#include "kernels/base/result.h"

namespace exact::journal {

inline constexpr uint32_t kFrameMagic = 0x524a5845;  // "EXJR"
inline constexpr uint16_t kFormatVersion = 1;
inline constexpr size_t kFrameBytes = 48;
inline constexpr uint64_t kMaxBodyBytes = uint64_t{256} << 20;

struct FrameHeader {
  RecordKind kind{};
  uint64_t record_id = 0;  // consecutive; a session's is that of the record after it
  uint64_t time_us = 0;    // since 1970, UTC, by the worker's clock: for people, it decides nothing
  uint64_t body_bytes = 0;
  uint64_t body_checksum = 0;
};

// Appends header and body; checked: the body is not over the limit.
void append_frame(std::string& out, RecordKind kind, uint64_t record_id, uint64_t time_us,
                  std::string_view body);

// corrupt: too short, wrong magic, checksum or limit; unsupported: another format version.
Result<FrameHeader> parse_frame(std::span<const std::byte> bytes);

}  // namespace exact::journal
