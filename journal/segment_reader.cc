#include "journal/segment_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/digest.h"

namespace exact::journal {
namespace {

constexpr size_t kScanBytes = size_t{1} << 16;
constexpr std::string_view kMagicText = "EXJR";

}  // namespace

Result<SegmentReader> SegmentReader::open(const std::string& path) {
  ipc::FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) {
    const Code code = errno == ENOENT ? Code::not_found : Code::device;
    return Status(code, "can't open " + path + ": " + ipc::os_error_text(errno));
  }
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) {
    return Status(Code::device, "can't look at " + path + ": " + ipc::os_error_text(errno));
  }
  if (!S_ISREG(info.st_mode)) return Status(Code::invalid, path + " is not a file");
  return SegmentReader(path, std::move(file), static_cast<uint64_t>(info.st_size));
}

Status SegmentReader::read(uint64_t offset, std::span<std::byte> into) const {
  while (!into.empty()) {
    const ssize_t got =
        ::pread(file_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return Status(Code::device, "can't read " + path_ + ": " + ipc::os_error_text(errno));
    }
    if (got == 0) return Status(Code::device, path_ + " became shorter while it was read");
    offset += static_cast<uint64_t>(got);
    into = into.subspan(static_cast<size_t>(got));
  }
  return {};
}

Result<uint64_t> SegmentReader::find_frame(uint64_t from) const {
  std::vector<std::byte> block(kScanBytes);
  while (from + kFrameBytes <= bytes_) {
    const auto size = static_cast<size_t>(std::min<uint64_t>(kScanBytes, bytes_ - from));
    EXACT_RETURN_IF_ERROR(read(from, std::span(block).first(size)));
    const std::string_view text(reinterpret_cast<const char*>(block.data()), size);
    for (size_t at = text.find(kMagicText); at != text.npos && at + kFrameBytes <= size;
         at = text.find(kMagicText, at + 1)) {
      if (parse_frame(std::span(block).subspan(at, kFrameBytes)).is_ok()) return from + at;
    }
    from += size - kFrameBytes + 1;  // a header may lie across two blocks
  }
  return bytes_;
}

Status SegmentReader::damage(Code code, const std::string& what) const {
  return Status(code, path_ + ", byte " + std::to_string(offset_) + ": " + what);
}

Result<std::optional<RawFrame>> SegmentReader::end_torn(const std::string& why) {
  torn_ = TornTail{path_, offset_, bytes_ - offset_, why};
  return std::optional<RawFrame>();
}

Result<std::optional<RawFrame>> SegmentReader::next() {
  if (torn_ || (offset_ == bytes_ && bytes_ > 0)) return std::optional<RawFrame>();
  const uint64_t left = bytes_ - offset_;
  if (left < kFrameBytes) return end_torn("the file ends within a frame's header");
  std::array<std::byte, kFrameBytes> head;
  EXACT_RETURN_IF_ERROR(read(offset_, head));
  const Result<FrameHeader> header = parse_frame(head);
  if (!header) {
    EXACT_ASSIGN(const uint64_t next, find_frame(offset_ + 1));
    const bool is_foreign = header.status().code() == Code::unsupported;
    if (next == bytes_ && !is_foreign) return end_torn(header.status().message());
    const Status status = damage(header.status().code(), header.status().message());
    offset_ = next;
    return status;
  }
  if (header->body_bytes > left - kFrameBytes) return end_torn("the file ends within a record");
  RawFrame frame{*header, offset_, {}};
  try {
    frame.body.resize(static_cast<size_t>(header->body_bytes));
  } catch (const std::bad_alloc&) {
    return Status(Code::exhausted, "no memory for a record of " +
                                       std::to_string(header->body_bytes) + " bytes");
  }
  EXACT_RETURN_IF_ERROR(
      read(offset_ + kFrameBytes, std::as_writable_bytes(std::span(frame.body))));
  const uint64_t end = offset_ + kFrameBytes + header->body_bytes;
  if (digest64(std::as_bytes(std::span(frame.body))) != header->body_checksum) {
    const std::string what = "the checksum of record " + std::to_string(header->record_id) +
                             " is wrong";
    if (end == bytes_) return end_torn(what);
    const Status status = damage(Code::corrupt, what);
    offset_ = end;
    return status;
  }
  offset_ = end;
  return std::optional<RawFrame>(std::move(frame));
}

}  // namespace exact::journal
