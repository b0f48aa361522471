#include "ipc/shm_region.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <boost/interprocess/exceptions.hpp>
#include <boost/interprocess/mapped_region.hpp>
#include <boost/interprocess/permissions.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <cerrno>
#include <optional>
#include <utility>

#include "ipc/file_descriptor.h"

namespace exact::ipc {
namespace {

namespace bip = boost::interprocess;

constexpr std::string_view kPrefix = "exact-rollout.";
constexpr size_t kRandomDigits = 16;
constexpr const char* kDirectory = "/dev/shm";  // where shm_open keeps its files on Linux
constexpr int kCreateAttempts = 8;

Result<std::string> random_name() {
  uint64_t random = 0;
  ssize_t got = 0;
  do {
    got = ::getrandom(&random, sizeof(random), 0);
  } while (got < 0 && errno == EINTR);
  if (got != static_cast<ssize_t>(sizeof(random))) {
    return Status(Code::device, "the system gives no random bytes: " + os_error_text(errno));
  }
  std::string name(kPrefix);
  for (size_t digit = 0; digit < kRandomDigits; ++digit) {
    name += "0123456789abcdef"[(random >> (4 * digit)) & 15];
  }
  return name;
}

int file_of(const bip::shared_memory_object& memory) {
  return memory.get_mapping_handle().handle;
}

// 0, or the errno. EWOULDBLOCK: somebody else holds it.
int try_lock(int fd) {
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

Status no_room(uint64_t bytes) {
  return Status(Code::exhausted, "no room for " + std::to_string(bytes) + " bytes in " +
                                     kDirectory +
                                     ": use smaller buckets, free some, or mount it larger");
}

// Every page is taken now, so that a full /dev/shm is an error here and not SIGBUS at a write.
Status reserve(bip::shared_memory_object& memory, uint64_t bytes) {
  struct statvfs space {};
  if (::statvfs(kDirectory, &space) != 0) {
    return Status(Code::device,
                  std::string("can't look at ") + kDirectory + ": " + os_error_text(errno));
  }
  if (bytes > INT64_MAX || bytes / space.f_frsize >= space.f_bavail) return no_room(bytes);
  memory.truncate(static_cast<bip::offset_t>(bytes));
  int error = 0;
  do {
    error = ::posix_fallocate(file_of(memory), 0, static_cast<off_t>(bytes));
  } while (error == EINTR);
  if (error == ENOSPC || error == ENOMEM) return no_room(bytes);
  if (error == 0) return {};
  return Status(Code::device, "can't reserve shared memory: " + os_error_text(error));
}

// Shared memory under a new name, locked. Nothing when a sweep took it for a dead owner's between
// its making and its locking; its name is gone then, and another is needed.
Result<std::optional<bip::shared_memory_object>> create_locked(const std::string& name) {
  using Made = std::optional<bip::shared_memory_object>;
  bip::shared_memory_object memory;
  try {
    memory = bip::shared_memory_object(bip::create_only, name.c_str(), bip::read_write,
                                       bip::permissions(0600));
  } catch (const bip::interprocess_exception& error) {
    if (error.get_error_code() == bip::already_exists_error) return Made();
    throw;
  }
  const int lock_error = try_lock(file_of(memory));
  struct stat file {};
  if (lock_error == 0 && ::fstat(file_of(memory), &file) == 0 && file.st_nlink > 0) {
    return Made(std::move(memory));
  }
  if (lock_error != 0 && lock_error != EWOULDBLOCK) {
    bip::shared_memory_object::remove(name.c_str());
    return Status(Code::device, "can't lock shared memory: " + os_error_text(lock_error));
  }
  return Made();
}

Status check_file(const std::string& name, int fd, uint64_t expected_bytes) {
  struct stat file {};
  if (::fstat(fd, &file) != 0) {
    return Status(Code::device, "can't look at region " + name + ": " + os_error_text(errno));
  }
  if (!S_ISREG(file.st_mode)) return Status(Code::corrupt, name + " is not shared memory");
  if (file.st_uid != ::geteuid()) {
    return Status(Code::corrupt, "region " + name + " belongs to user " +
                                     std::to_string(file.st_uid) +
                                     ": both sides must run as the same user");
  }
  if (static_cast<uint64_t>(file.st_size) != expected_bytes) {
    return Status(Code::corrupt, "region " + name + " has " + std::to_string(file.st_size) +
                                     " bytes, not the expected " + std::to_string(expected_bytes));
  }
  return {};
}

Status shm_failure(const std::string& doing, const bip::interprocess_exception& error) {
  if (error.get_error_code() == bip::not_found_error) {
    return Status(Code::not_found, doing + ": there is no such region (its owner has gone)");
  }
  return Status(Code::device, doing + ": " + error.what());
}

}  // namespace

bool is_region_name(std::string_view name) {
  if (name.size() != kPrefix.size() + kRandomDigits || !name.starts_with(kPrefix)) return false;
  const std::string_view digits = name.substr(kPrefix.size());
  return std::all_of(digits.begin(), digits.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

class ShmRegion::Impl {
 public:
  Impl(std::string name, bip::shared_memory_object memory, bool is_owner)
      : name_(std::move(name)), memory_(std::move(memory)), is_owner_(is_owner) {}
  ~Impl() {
    if (is_owner_) bip::shared_memory_object::remove(name_.c_str());  // the lock goes with memory_
  }
  void map(uint64_t bytes) {
    view_ = bip::mapped_region(memory_, bip::read_write, 0, static_cast<size_t>(bytes));
  }

  std::string name_;
  bip::shared_memory_object memory_;
  bip::mapped_region view_;
  bool is_owner_;
};

ShmRegion::ShmRegion(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ShmRegion::~ShmRegion() = default;
const std::string& ShmRegion::name() const {
  return impl_->name_;
}
std::span<std::byte> ShmRegion::bytes() const {
  return {static_cast<std::byte*>(impl_->view_.get_address()), impl_->view_.get_size()};
}

Result<std::unique_ptr<ShmRegion>> ShmRegion::create(uint64_t bytes) {
  if (bytes == 0) return Status(Code::invalid, "a region of 0 bytes: give it at least one");
  try {
    for (int attempt = 0; attempt < kCreateAttempts; ++attempt) {
      EXACT_ASSIGN(const std::string name, random_name());
      EXACT_ASSIGN(auto memory, create_locked(name));
      if (!memory) continue;
      auto impl = std::make_unique<Impl>(name, std::move(*memory), true);  // removes from here on
      EXACT_RETURN_IF_ERROR(reserve(impl->memory_, bytes));
      impl->map(bytes);
      return std::unique_ptr<ShmRegion>(new ShmRegion(std::move(impl)));
    }
  } catch (const bip::interprocess_exception& error) {
    return shm_failure("can't make shared memory", error);
  }
  return Status(Code::exhausted, "found no free name for shared memory: try again");
}

Result<std::unique_ptr<ShmRegion>> ShmRegion::open(const std::string& name,
                                                   uint64_t expected_bytes) {
  if (!is_region_name(name)) {
    return Status(Code::invalid,
                  "not a region's name: it must be 'exact-rollout.' and 16 digits of "
                  "0-9a-f");
  }
  if (expected_bytes == 0) return Status(Code::invalid, "region " + name + " of 0 bytes");
  try {
    auto impl = std::make_unique<Impl>(
        name, bip::shared_memory_object(bip::open_only, name.c_str(), bip::read_write), false);
    EXACT_RETURN_IF_ERROR(check_file(name, file_of(impl->memory_), expected_bytes));
    impl->map(expected_bytes);
    return std::unique_ptr<ShmRegion>(new ShmRegion(std::move(impl)));
  } catch (const bip::interprocess_exception& error) {
    return shm_failure("can't open region " + name, error);
  }
}

namespace {

// Removed while its lock is held: a creator that waits for the lock finds its name gone, and
// takes another (create_locked).
bool remove_if_dead(int directory, const char* name) {
  FileDescriptor file(::openat(directory, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  struct stat state {};
  if (!file.is_open() || ::fstat(file.get(), &state) != 0) return false;
  if (!S_ISREG(state.st_mode) || state.st_uid != ::geteuid()) return false;
  if (try_lock(file.get()) != 0) return false;  // its owner lives
  return ::unlinkat(directory, name, 0) == 0;
}

}  // namespace

Result<uint64_t> sweep_dead_regions() {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(kDirectory), ::closedir);
  if (!directory) {
    return Status(Code::device,
                  std::string("can't read ") + kDirectory + ": " + os_error_text(errno));
  }
  uint64_t removed = 0;
  while (const dirent* entry = ::readdir(directory.get())) {
    if (!is_region_name(entry->d_name)) continue;
    if (remove_if_dead(::dirfd(directory.get()), entry->d_name)) ++removed;
  }
  return removed;
}

}  // namespace exact::ipc
