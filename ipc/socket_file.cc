#include "ipc/socket_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace exact::ipc {
namespace {

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}

Status make_directory(const std::string& directory) {
  if (::mkdir(directory.c_str(), 0700) == 0 || errno == EEXIST) return {};
  return Status(Code::device, "can't make the socket's directory " + directory + ": " +
                                  os_error_text(errno) + ": make it with mode 0700");
}

Result<FileDescriptor> take_lock(const std::string& path) {
  const std::string lock_path = path + ".lock";
  FileDescriptor lock(
      ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!lock.is_open()) {
    return Status(Code::device, "can't open " + lock_path + ": " + os_error_text(errno));
  }
  int outcome = 0;
  do {
    outcome = ::flock(lock.get(), LOCK_EX | LOCK_NB);
  } while (outcome != 0 && errno == EINTR);
  if (outcome == 0) return lock;
  if (errno == EWOULDBLOCK) {
    return Status(Code::invalid, "another process serves " + path +
                                     ": stop it, or choose another endpoint for this one");
  }
  return Status(Code::device, "can't lock " + lock_path + ": " + os_error_text(errno));
}

// Called with the lock held: whoever bound this path is gone.
Status remove_leftover(const std::string& path) {
  struct stat file {};
  if (::lstat(path.c_str(), &file) != 0) {
    if (errno == ENOENT) return {};
    return Status(Code::device, "can't look at " + path + ": " + os_error_text(errno));
  }
  if (!S_ISSOCK(file.st_mode)) {
    return Status(Code::invalid,
                  path + " is there and is no socket: move it away, or choose another endpoint");
  }
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return {};
  return Status(Code::device, "can't remove the old socket " + path + ": " + os_error_text(errno));
}

}  // namespace

Status check_socket_directory(const std::string& path) {
  const std::string directory = directory_of(path);
  struct stat file {};
  if (::lstat(directory.c_str(), &file) != 0) {
    if (errno == ENOENT) {
      return Status(Code::not_found,
                    "there is no directory " + directory + ": is a worker serving this endpoint?");
    }
    return Status(Code::device, "can't look at " + directory + ": " + os_error_text(errno));
  }
  if (!S_ISDIR(file.st_mode)) {
    return Status(Code::invalid, directory +
                                     " is not a directory (or is a link to one): "
                                     "give the endpoint in a real one");
  }
  if (file.st_uid != ::geteuid() && file.st_uid != 0) {
    return Status(Code::invalid, directory + " belongs to user " + std::to_string(file.st_uid) +
                                     ": give an endpoint in a directory of your own");
  }
  if ((file.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return Status(Code::invalid, "others may write to " + directory +
                                     ", so they could replace the socket: chmod 0700 it, or give "
                                     "an endpoint in a directory of your own");
  }
  return {};
}

Result<SocketFile> SocketFile::claim(const std::string& path) {
  EXACT_RETURN_IF_ERROR(make_directory(directory_of(path)));
  EXACT_RETURN_IF_ERROR(check_socket_directory(path));
  EXACT_ASSIGN(FileDescriptor lock, take_lock(path));
  EXACT_RETURN_IF_ERROR(remove_leftover(path));
  return SocketFile(std::move(lock));
}

}  // namespace exact::ipc
