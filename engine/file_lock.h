// file_lock.h owns locks between processes: on an empty file that stays where it is. A lock ends
// with its owner, or with the owner's process.
#pragma once

#include <string>

#include "kernels/base/result.h"

namespace exact {

class FileLock {
 public:
  // Beside other shared ones; waits while an exclusive one is held. device: no such file can be.
  static Result<FileLock> shared(const std::string& path);
  // Alone. exhausted: somebody holds one; device: as shared().
  static Result<FileLock> exclusive(const std::string& path);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}
  static Result<FileLock> lock(const std::string& path, int operation);

  int descriptor_ = -1;
};

}  // namespace exact
