// file.h owns the engine's few file operations: read a bounded file, and write one so that it is
// whole or not there.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/result.h"

namespace exact {

// The status of a failed system call on `path`, from errno: not_found or device.
Status system_error(std::string_view action, const std::string& path);

// not_found: no such file; invalid: more than `max_bytes`; device: it can't be read.
Result<std::string> read_file(const std::string& path, size_t max_bytes);

// Writes to path + suffix. commit() makes it durable and renames it; without commit it vanishes.
class AtomicFile {
 public:
  // Who may write the same file as others do at the same time needs a suffix of his own.
  static Result<AtomicFile> create(const std::string& path, const std::string& suffix = ".tmp");
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) = delete;
  ~AtomicFile();

  Status write(std::span<const std::byte> bytes);
  Status write(std::string_view text);
  Status commit();

 private:
  AtomicFile(std::string path, std::string temporary_path, int descriptor)
      : path_(std::move(path)),
        temporary_path_(std::move(temporary_path)),
        descriptor_(descriptor) {}

  std::string path_, temporary_path_;
  int descriptor_ = -1;
};

}  // namespace exact
