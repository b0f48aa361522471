#include "worker/input_watcher.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

namespace exact::worker {
namespace {

// True: the input has ended. False: `stop_fd` was set.
bool wait_for_end(int fd, int stop_fd) {
  std::array<char, 4096> dropped;
  while (true) {
    std::array<pollfd, 2> items{{{fd, POLLIN, 0}, {stop_fd, POLLIN, 0}}};
    if (poll(items.data(), items.size(), -1) < 0 && errno != EINTR) return false;
    if (items[1].revents != 0) return false;
    if (items[0].revents == 0) continue;
    const ssize_t bytes = read(fd, dropped.data(), dropped.size());
    if (bytes == 0 || (bytes < 0 && errno != EINTR && errno != EAGAIN)) return true;
  }
}

}  // namespace

Result<std::unique_ptr<InputWatcher>> InputWatcher::start(int fd, std::function<void()> on_end) {
  const int stop_fd = eventfd(0, EFD_CLOEXEC);
  if (stop_fd < 0) return Status(Code::device, "no event to watch the standard input with");
  std::unique_ptr<InputWatcher> watcher(new InputWatcher(stop_fd));
  watcher->thread_ = std::thread([fd, stop_fd, on_end = std::move(on_end)] {
    if (wait_for_end(fd, stop_fd)) on_end();
  });
  return watcher;
}

InputWatcher::~InputWatcher() {
  (void)eventfd_write(stop_fd_, 1);
  if (thread_.joinable()) thread_.join();
  close(stop_fd_);
}

}  // namespace exact::worker
