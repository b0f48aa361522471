// A unix socket in the file system: who may serve a path, and what strangers can do to it.
#include "ipc/socket_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ipc/socket.h"
#include "tests/ipc/child_process.h"
#include "tests/ipc/random.h"
#include "tests/support/temporary_directory.h"

namespace exact::ipc {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

class SocketFileTest : public ::testing::Test {
 protected:
  Result<std::unique_ptr<ServerSocket>> bind() {
    return ServerSocket::bind({"ipc://" + path_, 1 << 20, 100});
  }
  // A message goes from a new client to the server.
  void expect_reachable(ServerSocket& server) {
    auto client = ClientSocket::connect({"ipc://" + path_, 1 << 20, 100});
    ASSERT_TRUE(client.is_ok()) << client.status().to_string();
    ASSERT_TRUE((*client)->send({"h", "b"}, 1s).is_ok());
    auto incoming = server.receive(20s);
    ASSERT_TRUE(incoming.is_ok() && incoming->has_value());
    EXPECT_EQ((*incoming)->body, "b");
  }

  TemporaryDirectory root_;
  std::string directory_ = root_.path() + "/d";
  std::string path_ = directory_ + "/w.sock";
};

TEST_F(SocketFileTest, DirectoryIsMadeForItsOwnerAlone) {
  const auto server = bind();
  ASSERT_TRUE(server.is_ok()) << server.status().to_string();
  struct stat file {};
  ASSERT_EQ(::stat(directory_.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777u, 0700u);
}

TEST_F(SocketFileTest, DirectoryThatOthersCanWriteToIsRefused) {
  ASSERT_EQ(::mkdir(directory_.c_str(), 0700), 0);
  for (const mode_t mode : {0770u, 0702u, 01777u}) {
    ASSERT_EQ(::chmod(directory_.c_str(), mode), 0);
    const Status server = bind().status();
    EXPECT_EQ(server.code(), Code::invalid) << std::oct << mode;
    EXPECT_THAT(server.message(), HasSubstr("chmod 0700"));
    const Status client = ClientSocket::connect({"ipc://" + path_, 1 << 20, 100}).status();
    EXPECT_EQ(client.code(), Code::invalid) << std::oct << mode;
  }
  ASSERT_EQ(::chmod(directory_.c_str(), 0755), 0);  // others may look
  EXPECT_TRUE(bind().is_ok());
}

TEST_F(SocketFileTest, DirectoryOfAnotherUserIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a directory away";
  ASSERT_EQ(::mkdir(directory_.c_str(), 0700), 0);
  ASSERT_EQ(::chown(directory_.c_str(), 12345, 12345), 0);
  const Status status = bind().status();
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_THAT(status.message(), HasSubstr("belongs to user 12345"));
}

TEST_F(SocketFileTest, LinkInPlaceOfTheDirectoryIsRefused) {
  std::filesystem::create_directory(root_.path() + "/elsewhere");
  std::filesystem::create_symlink(root_.path() + "/elsewhere", directory_);
  EXPECT_EQ(bind().status().code(), Code::invalid);
}

TEST_F(SocketFileTest, DirectoryWithoutAParentSaysWhatToDo) {
  path_ = root_.path() + "/no/such/w.sock";
  const Status status = bind().status();
  EXPECT_EQ(status.code(), Code::device);
  EXPECT_THAT(status.message(), HasSubstr("make it with mode 0700"));
  EXPECT_EQ(check_socket_directory(path_).code(), Code::not_found);
}

TEST_F(SocketFileTest, SecondServerIsRefusedAndTheFirstServesOn) {
  const auto first = bind();
  ASSERT_TRUE(first.is_ok()) << first.status().to_string();
  const Status second = bind().status();
  EXPECT_EQ(second.code(), Code::invalid);
  EXPECT_THAT(second.message(), HasSubstr("another process serves"));
  expect_reachable(**first);
}

TEST_F(SocketFileTest, PathIsFreeAgainAfterItsServer) {
  for (int round = 0; round < 3; ++round) {
    const auto server = bind();
    ASSERT_TRUE(server.is_ok()) << server.status().to_string();
    expect_reachable(**server);
  }
}

TEST_F(SocketFileTest, LiveServerInAnotherProcessIsRefusedAndADeadOnesSocketReplaced) {
  ChildProcess child([&] {
    auto server = bind();
    const std::string outcome = server.status().to_string();
    if (server.is_ok()) (void)(*server).release();  // served until the kill
    return outcome;
  });
  ASSERT_EQ(child.line(), "ok");
  EXPECT_EQ(bind().status().code(), Code::invalid);
  child.kill();
  ASSERT_TRUE(std::filesystem::is_socket(path_)) << "the dead server should have left its socket";
  const auto server = bind();
  ASSERT_TRUE(server.is_ok()) << server.status().to_string();
  expect_reachable(**server);
}

TEST_F(SocketFileTest, FileThatIsNoSocketIsLeftAlone) {
  ASSERT_EQ(::mkdir(directory_.c_str(), 0700), 0);
  std::ofstream(path_) << "precious";
  const Status status = bind().status();
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_THAT(status.message(), HasSubstr("is no socket"));
  EXPECT_EQ(std::filesystem::file_size(path_), 8u);
}

int connect_raw(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

// What a ZMTP 3 peer sends first: signature, version, mechanism NULL; then that it is a DEALER.
std::string zmtp_greeting() {
  std::string greeting("\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL", 16);
  greeting.resize(64, '\0');
  return greeting;
}
std::string zmtp_ready() {
  return std::string(
      "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06"
      "DEALER",
      30);
}

void send_raw(int fd, const std::string& bytes) {
  EXPECT_EQ(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

// A connection that has said who it is and read the server's own 64-byte greeting.
int connect_greeted(const std::string& path) {
  const int fd = connect_raw(path);
  send_raw(fd, zmtp_greeting());
  char greeting[64];
  EXPECT_EQ(::recv(fd, greeting, sizeof(greeting), MSG_WAITALL), 64);
  return fd;
}

TEST_F(SocketFileTest, HandWrittenPeerIsUnderstood) {
  const auto server = bind();
  ASSERT_TRUE(server.is_ok()) << server.status().to_string();
  const int fd = connect_greeted(path_);
  send_raw(fd, zmtp_ready());
  char ready[43];  // the server's, of a ROUTER without an identity
  EXPECT_EQ(::recv(fd, ready, sizeof(ready), MSG_WAITALL), 43);
  send_raw(fd, std::string("\x01\x01h\0\x02"
                           "by",
                           7));
  auto incoming = (*server)->receive(20s);
  ASSERT_TRUE(incoming.is_ok() && incoming->has_value());
  EXPECT_EQ((*incoming)->header, "h");
  EXPECT_EQ((*incoming)->body, "by");
  ::close(fd);
}

TEST_F(SocketFileTest, GarbageOverTheSocketIsHarmless) {
  const auto server = bind();
  ASSERT_TRUE(server.is_ok()) << server.status().to_string();
  const std::string huge_frame("\x02\xff\xff\xff\xff\xff\xff\xff\xff", 9);
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    Random random(seed);
    std::string bytes;
    if (seed % 4 >= 2) bytes += zmtp_ready();
    if (seed % 4 == 3) bytes += huge_frame;
    bytes += random.bytes(random.below(500));
    const int fd = seed % 4 == 0 ? connect_raw(path_) : connect_greeted(path_);
    send_raw(fd, bytes);
    ::close(fd);
  }
  // Some garbage may have been a message of the wrong shape; none stops the server.
  while (true) {
    auto incoming = (*server)->receive(50ms);
    ASSERT_TRUE(incoming.is_ok()) << incoming.status().to_string();
    if (!incoming->has_value()) break;
  }
  expect_reachable(**server);
}

}  // namespace
}  // namespace exact::ipc
