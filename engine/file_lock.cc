#include "engine/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "engine/file.h"

namespace exact {

Result<FileLock> FileLock::lock(const std::string& path, int operation) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor < 0) return system_error("open", path);
  FileLock lock(descriptor);
  while (::flock(descriptor, operation) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) {
      return Status(Code::exhausted, "'" + path + "' is locked: another process is at work there");
    }
    return system_error("lock", path);
  }
  return lock;
}

Result<FileLock> FileLock::shared(const std::string& path) {
  return lock(path, LOCK_SH);
}

Result<FileLock> FileLock::exclusive(const std::string& path) {
  return lock(path, LOCK_EX | LOCK_NB);
}

FileLock::FileLock(FileLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

FileLock::~FileLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace exact
