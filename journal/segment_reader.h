// segment_reader.h owns reading one segment from its beginning. It believes nothing: lengths count
// only under a good checksum, and memory is taken only for bytes that are there.
//
// A bad frame with nothing readable after it is a torn tail, which is how a killed writer or a
// power cut leaves a file: next() ends there. A bad frame with more after it is damage: next()
// names the offset, and the call after that goes on behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "ipc/file_descriptor.h"
#include "journal/frame.h"
#include "kernels/base/result.h"

namespace exact::journal {

struct TornTail {
  std::string path;
  uint64_t offset = 0;  // whole frames end here
  uint64_t bytes = 0;   // that follow it
  std::string why;
};

struct RawFrame {
  FrameHeader header;
  uint64_t offset = 0;
  std::string body;  // its checksum is right
};

class SegmentReader {
 public:
  // Reads up to the size that the file has now. not_found; device.
  static Result<SegmentReader> open(const std::string& path);

  // The next frame, or nothing at the end or at a torn tail. corrupt or unsupported: what is wrong,
  // and where; call again to go on behind it. device: the file can't be read; give up.
  Result<std::optional<RawFrame>> next();

  const std::string& path() const { return path_; }
  uint64_t offset() const { return offset_; }  // of the next frame
  uint64_t bytes() const { return bytes_; }
  const std::optional<TornTail>& torn() const { return torn_; }

 private:
  SegmentReader(std::string path, ipc::FileDescriptor file, uint64_t bytes)
      : path_(std::move(path)), file_(std::move(file)), bytes_(bytes) {}
  Status read(uint64_t offset, std::span<std::byte> into) const;
  // The first offset from `from` on where a whole frame header is, or bytes_.
  Result<uint64_t> find_frame(uint64_t from) const;
  Result<std::optional<RawFrame>> end_torn(const std::string& why);
  Status damage(Code code, const std::string& what) const;

  std::string path_;
  ipc::FileDescriptor file_;
  uint64_t bytes_ = 0;
  uint64_t offset_ = 0;
  std::optional<TornTail> torn_;
};

}  // namespace exact::journal
