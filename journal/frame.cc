#include "journal/frame.h"

#include "ipc/raw_numbers.h"
#include "kernels/base/digest.h"

namespace exact::journal {
namespace {

constexpr size_t kCheckedBytes = kFrameBytes - sizeof(uint64_t);

}  // namespace

void append_frame(std::string& out, RecordKind kind, uint64_t record_id, uint64_t time_us,
                  std::string_view body) {
  EXACT_CHECK(body.size() <= kMaxBodyBytes, "a record over the limit of the format");
  const size_t begin = out.size();
  ipc::put_number(out, kFrameMagic);
  ipc::put_number(out, kFormatVersion);
  ipc::put_number(out, kind);
  ipc::put_number(out, record_id);
  ipc::put_number(out, time_us);
  ipc::put_number(out, static_cast<uint64_t>(body.size()));
  ipc::put_number(out, digest64(std::as_bytes(std::span(body))));
  ipc::put_number(out, digest64(std::as_bytes(std::span(out)).subspan(begin)));
  out.append(body);
}

Result<FrameHeader> parse_frame(std::span<const std::byte> bytes) {
  if (bytes.size() < kFrameBytes) return Status(Code::corrupt, "a frame header is cut short");
  if (ipc::get_number<uint32_t>(bytes, 0) != kFrameMagic) {
    return Status(Code::corrupt, "no frame begins here: its first bytes must be 'EXJR'");
  }
  if (ipc::get_number<uint64_t>(bytes, kCheckedBytes) != digest64(bytes.first(kCheckedBytes))) {
    return Status(Code::corrupt, "a frame header's checksum is wrong");
  }
  const auto version = ipc::get_number<uint16_t>(bytes, 4);
  if (version != kFormatVersion) {
    return Status(Code::unsupported, "the journal has format version " + std::to_string(version) +
                                         ", this program reads version " +
                                         std::to_string(kFormatVersion) +
                                         ": use the release that wrote it");
  }
  FrameHeader header;
  header.kind = static_cast<RecordKind>(ipc::get_number<uint16_t>(bytes, 6));
  header.record_id = ipc::get_number<uint64_t>(bytes, 8);
  header.time_us = ipc::get_number<uint64_t>(bytes, 16);
  header.body_bytes = ipc::get_number<uint64_t>(bytes, 24);
  header.body_checksum = ipc::get_number<uint64_t>(bytes, 32);
  if (header.body_bytes > kMaxBodyBytes) {
    return Status(Code::corrupt, "a frame claims a body of " + std::to_string(header.body_bytes) +
                                     " bytes; the limit is " + std::to_string(kMaxBodyBytes));
  }
  return header;
}

}  // namespace exact::journal
