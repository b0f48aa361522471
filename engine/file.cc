#include "engine/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

namespace exact {
namespace {

std::string directory_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

// A rename survives a power cut only when its directory has been synced.
Status sync_directory(const std::string& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return system_error("open", directory);
  const bool synced = ::fsync(descriptor) == 0;
  const Status status = synced ? Status() : system_error("sync", directory);
  ::close(descriptor);
  return status;
}

}  // namespace

Status system_error(std::string_view action, const std::string& path) {
  const int error = errno;
  const Code code = error == ENOENT ? Code::not_found : Code::device;
  return {code, "can't " + std::string(action) + " '" + path +
                    "': " + std::generic_category().message(error)};
}

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return system_error("open", path);
  std::string text;
  Status status;
  char block[16384];
  while (true) {
    const ssize_t count = ::read(descriptor, block, sizeof block);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) status = system_error("read", path);
    if (count <= 0) break;
    text.append(block, static_cast<size_t>(count));
    if (text.size() > max_bytes) {
      status = Status(Code::invalid, "'" + path + "' has more than the " +
                                         std::to_string(max_bytes) + " bytes allowed for its kind");
      break;
    }
  }
  ::close(descriptor);
  if (!status.is_ok()) return status;
  return text;
}

Result<AtomicFile> AtomicFile::create(const std::string& path, const std::string& suffix) {
  const std::string temporary = path + suffix;
  const int descriptor =
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor < 0) return system_error("create", temporary);
  return AtomicFile(path, temporary, descriptor);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::move(other.temporary_path_)),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_path_.c_str());
}

Status AtomicFile::write(std::span<const std::byte> bytes) {
  EXACT_CHECK(descriptor_ >= 0, "a file is written before its commit");
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("write", temporary_path_);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  return {};
}

Status AtomicFile::write(std::string_view text) {
  return write(std::as_bytes(std::span(text)));
}

Status AtomicFile::commit() {
  EXACT_CHECK(descriptor_ >= 0, "a file is committed once");
  if (::fsync(descriptor_) != 0) return system_error("sync", temporary_path_);
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) return system_error("rename", path_);
  ::close(std::exchange(descriptor_, -1));
  return sync_directory(directory_of(path_));
}

}  // namespace exact
