#include "ipc/socket.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>
#include <zmq.hpp>

#include "ipc/socket_file.h"

namespace exact::ipc {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Between the two I/O threads, so a process that only computes is not taken for dead.
constexpr milliseconds kZmtpHeartbeat{5'000};
constexpr milliseconds kZmtpSilence{20'000};
constexpr milliseconds kHandshake{5'000};  // a connection that says nothing is closed
constexpr milliseconds kServerLinger{1'000};
constexpr milliseconds kClientLinger{200};
constexpr milliseconds kMaxWait{24 * 3'600'000};

int as_int(milliseconds duration) {
  return static_cast<int>(duration.count());
}

Status zmq_failure(const std::string& doing, const zmq::error_t& error) {
  return Status(Code::device, doing + ": " + error.what());
}

template <class Options>
Status check_options(const Options& options) {
  if (options.queue_messages < 1) {
    return Status(Code::invalid, "queue_messages must be at least 1 (0 would mean no limit)");
  }
  const uint64_t bytes = options.max_message_bytes;
  if (bytes < kHeaderBytes || bytes > INT64_MAX) {
    return Status(Code::invalid,
                  "max_message_bytes must be at least a header's " + std::to_string(kHeaderBytes));
  }
  return {};
}

template <class Options>
void apply_options(zmq::socket_t& socket, const Options& options, const Endpoint& endpoint,
                   milliseconds linger) {
  socket.set(zmq::sockopt::maxmsgsize, static_cast<int64_t>(options.max_message_bytes));
  socket.set(zmq::sockopt::sndhwm, options.queue_messages);
  socket.set(zmq::sockopt::rcvhwm, options.queue_messages);
  socket.set(zmq::sockopt::linger, as_int(linger));
  socket.set(zmq::sockopt::ipv6, endpoint.is_ipv6);
  socket.set(zmq::sockopt::heartbeat_ivl, as_int(kZmtpHeartbeat));
  socket.set(zmq::sockopt::heartbeat_timeout, as_int(kZmtpSilence));
  socket.set(zmq::sockopt::heartbeat_ttl, as_int(kZmtpSilence));
  socket.set(zmq::sockopt::handshake_ivl, as_int(kHandshake));
}

// True when `event` came; false after the timeout or a signal.
bool wait_for(zmq::socket_t& socket, short event, milliseconds timeout) {
  zmq::pollitem_t item{socket.handle(), 0, event, 0};
  try {
    return zmq::poll(&item, 1, std::clamp(timeout, milliseconds(0), kMaxWait)) > 0;
  } catch (const zmq::error_t& error) {
    if (error.num() == EINTR) return false;
    throw;
  }
}

// A descriptor that another thread can make readable.
class WakeEvent {
 public:
  WakeEvent() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  ~WakeEvent() {
    if (fd_ >= 0) close(fd_);
  }
  WakeEvent(const WakeEvent&) = delete;
  WakeEvent& operator=(const WakeEvent&) = delete;

  bool is_open() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  // Both can fail in one way only, that the count is at its end already.
  void set() { (void)eventfd_write(fd_, 1); }
  void clear() {
    eventfd_t count = 0;
    (void)eventfd_read(fd_, &count);
  }

 private:
  int fd_;
};

// As above, and false when `wake` was set.
bool wait_for_input(zmq::socket_t& socket, WakeEvent& wake, milliseconds timeout) {
  std::array<zmq::pollitem_t, 2> items{
      {{socket.handle(), 0, ZMQ_POLLIN, 0}, {nullptr, wake.fd(), ZMQ_POLLIN, 0}}};
  try {
    zmq::poll(items.data(), items.size(), std::clamp(timeout, milliseconds(0), kMaxWait));
  } catch (const zmq::error_t& error) {
    if (error.num() != EINTR) throw;
    return false;
  }
  if ((items[1].revents & ZMQ_POLLIN) != 0) wake.clear();
  return (items[0].revents & ZMQ_POLLIN) != 0;
}

// A signal may break off even calls that do not wait. Parts of a message belong together, so they
// are tried again.
template <class Call>
auto retry_interrupted(Call call) {
  while (true) {
    try {
      return call();
    } catch (const zmq::error_t& error) {
      if (error.num() != EINTR) throw;
    }
  }
}

// The parts of one message: the first kKept are here, the others were read and dropped.
struct Parts {
  static constexpr size_t kKept = 3;
  std::array<std::string, kKept> part;
  size_t count = 0;
};

std::optional<Parts> receive_parts(zmq::socket_t& socket) {
  Parts parts;
  bool more = true;
  while (more) {
    zmq::message_t frame;
    const auto received =
        retry_interrupted([&] { return socket.recv(frame, zmq::recv_flags::dontwait); });
    if (!received) return std::nullopt;  // nothing came; ZeroMQ hands over whole messages only
    if (parts.count < Parts::kKept) parts.part[parts.count] = frame.to_string();
    ++parts.count;
    more = frame.more();
  }
  return parts;
}

// `wait` says whether something came.
template <class Wait>
std::optional<Parts> receive_parts(zmq::socket_t& socket, milliseconds timeout, Wait wait) {
  auto parts = receive_parts(socket);
  if (parts || timeout <= milliseconds(0)) return parts;
  if (!wait()) return std::nullopt;
  return receive_parts(socket);
}

// False: the queue is full. Only a message's first part can find it so.
bool send_part(zmq::socket_t& socket, const std::string& bytes, bool is_last) {
  const auto flags =
      is_last ? zmq::send_flags::dontwait : zmq::send_flags::dontwait | zmq::send_flags::sndmore;
  return retry_interrupted([&] { return socket.send(zmq::buffer(bytes), flags); }).has_value();
}

bool send_frames(zmq::socket_t& socket, const Frames& frames) {
  return send_part(socket, frames.header, false) && send_part(socket, frames.body, true);
}

Status wrong_frame_count(size_t count) {
  return Status(Code::corrupt, "a message of " + std::to_string(count) +
                                   " frames: it must have two, header and body");
}

}  // namespace

// Destroyed from the last member up: socket, its I/O thread, and only then the right to the path.
class ServerSocket::Impl {
 public:
  explicit Impl(std::optional<SocketFile> file)
      : file_(std::move(file)), context_(1), socket_(context_, zmq::socket_type::router) {}

  void bind(const ServerSocketOptions& options, const Endpoint& endpoint) {
    apply_options(socket_, options, endpoint, kServerLinger);
    socket_.set(zmq::sockopt::router_mandatory, true);  // an answer to nobody is an error
    socket_.set(zmq::sockopt::router_handover, false);  // a newcomer can't take a peer's answers
    socket_.bind(endpoint.address);
    endpoint_ = socket_.get(zmq::sockopt::last_endpoint);
  }

  std::optional<SocketFile> file_;  // of a unix socket
  zmq::context_t context_;
  zmq::socket_t socket_;
  std::string endpoint_;
};

ServerSocket::ServerSocket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ServerSocket::~ServerSocket() = default;
const std::string& ServerSocket::endpoint() const {
  return impl_->endpoint_;
}

Result<std::unique_ptr<ServerSocket>> ServerSocket::bind(const ServerSocketOptions& options) {
  EXACT_RETURN_IF_ERROR(check_options(options));
  EXACT_ASSIGN(const Endpoint endpoint, parse_endpoint(options.endpoint, true));
  std::optional<SocketFile> file;
  if (endpoint.transport == Transport::unix_socket) {
    EXACT_ASSIGN(file, SocketFile::claim(endpoint.path));
  }
  try {
    auto impl = std::make_unique<Impl>(std::move(file));
    impl->bind(options, endpoint);
    return std::unique_ptr<ServerSocket>(new ServerSocket(std::move(impl)));
  } catch (const zmq::error_t& error) {
    if (error.num() == EADDRINUSE) {
      return Status(Code::invalid, "another process serves " + options.endpoint +
                                       ": stop it, or choose another endpoint for this one");
    }
    return zmq_failure("can't serve " + options.endpoint, error);
  }
}

Result<std::optional<Incoming>> ServerSocket::receive(milliseconds timeout) {
  try {
    auto parts = receive_parts(impl_->socket_, timeout,
                               [&] { return wait_for(impl_->socket_, ZMQ_POLLIN, timeout); });
    if (!parts) return std::optional<Incoming>();
    Incoming incoming;
    incoming.peer = std::move(parts->part[0]);
    if (parts->count != 3) {
      incoming.error = wrong_frame_count(parts->count - 1);
      return std::optional<Incoming>(std::move(incoming));
    }
    incoming.header = std::move(parts->part[1]);
    incoming.body = std::move(parts->part[2]);
    return std::optional<Incoming>(std::move(incoming));
  } catch (const zmq::error_t& error) {
    return zmq_failure("receiving at " + impl_->endpoint_, error);
  }
}

Status ServerSocket::send(const std::string& peer, const Frames& frames) {
  if (peer.empty()) return Status(Code::peer_lost, "an answer to no peer");
  try {
    // The first part of a ROUTER's message says where it goes, and alone can be refused.
    if (send_part(impl_->socket_, peer, false) && send_frames(impl_->socket_, frames)) return {};
    return Status(Code::exhausted,
                  "the peer's queue is full: it asks for more answers than it reads");
  } catch (const zmq::error_t& error) {
    if (error.num() == EHOSTUNREACH) {
      return Status(Code::peer_lost, "the peer has disconnected: its answer has nowhere to go");
    }
    return zmq_failure("sending at " + impl_->endpoint_, error);
  }
}

class ClientSocket::Impl {
 public:
  explicit Impl(std::string endpoint)
      : endpoint_(std::move(endpoint)), context_(1), socket_(context_, zmq::socket_type::dealer) {}

  std::string endpoint_;
  WakeEvent wake_;
  zmq::context_t context_;
  zmq::socket_t socket_;
};

ClientSocket::ClientSocket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ClientSocket::~ClientSocket() = default;

Result<std::unique_ptr<ClientSocket>> ClientSocket::connect(const ClientSocketOptions& options) {
  EXACT_RETURN_IF_ERROR(check_options(options));
  EXACT_ASSIGN(const Endpoint endpoint, parse_endpoint(options.endpoint, false));
  if (endpoint.transport == Transport::unix_socket) {
    // A directory that is not there yet may come with its worker.
    const Status directory = check_socket_directory(endpoint.path);
    if (!directory && directory.code() != Code::not_found) return directory;
  }
  try {
    auto impl = std::make_unique<Impl>(options.endpoint);
    if (!impl->wake_.is_open()) {
      return Status(Code::device, "no event for a client's socket: too many open files?");
    }
    apply_options(impl->socket_, options, endpoint, kClientLinger);
    impl->socket_.connect(endpoint.address);
    return std::unique_ptr<ClientSocket>(new ClientSocket(std::move(impl)));
  } catch (const zmq::error_t& error) {
    return zmq_failure("can't connect to " + options.endpoint, error);
  }
}

Result<std::optional<Frames>> ClientSocket::receive(milliseconds timeout) {
  try {
    auto parts = receive_parts(impl_->socket_, timeout, [&] {
      return wait_for_input(impl_->socket_, impl_->wake_, timeout);
    });
    if (!parts) return std::optional<Frames>();
    if (parts->count != 2) return wrong_frame_count(parts->count);
    return std::optional<Frames>(Frames{std::move(parts->part[0]), std::move(parts->part[1])});
  } catch (const zmq::error_t& error) {
    return zmq_failure("receiving from " + impl_->endpoint_, error);
  }
}

void ClientSocket::wake() {
  impl_->wake_.set();
}

Status ClientSocket::send(const Frames& frames, milliseconds timeout) {
  const auto deadline = steady_clock::now() + std::clamp(timeout, milliseconds(0), kMaxWait);
  try {
    while (!send_frames(impl_->socket_, frames)) {
      const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
      if (left <= milliseconds(0)) {
        return Status(Code::timeout, "the queue to " + impl_->endpoint_ +
                                         " stayed full: is a worker reading there?");
      }
      wait_for(impl_->socket_, ZMQ_POLLOUT, left);
    }
    return {};
  } catch (const zmq::error_t& error) {
    return zmq_failure("sending to " + impl_->endpoint_, error);
  }
}

}  // namespace exact::ipc
