// socket_file.h owns what a unix socket is in the file system: a directory that nobody else can
// write to, a "<path>.lock" that tells a live server from a dead one's leftovers. It opens no
// socket.
#pragma once

#include <string>

#include "ipc/file_descriptor.h"
#include "kernels/base/result.h"

namespace exact::ipc {

// The directory of `path` belongs to this user (or root), and nobody else may write to it.
// not_found: there is none; invalid: says how to mend it.
Status check_socket_directory(const std::string& path);

// The right to serve one path, for the life of this object. The kernel takes it back from a dead
// process; the lock file stays, because removing it would let two servers hold different ones.
class SocketFile {
 public:
  // Makes the directory (mode 0700) where there is none; removes a socket that a dead server left.
  // invalid: a directory that others can write to, a path that is no socket, or a live server.
  static Result<SocketFile> claim(const std::string& path);

 private:
  explicit SocketFile(FileDescriptor lock) : lock_(std::move(lock)) {}
  FileDescriptor lock_;
};

}  // namespace exact::ipc
