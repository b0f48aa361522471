// Which endpoints are taken, and what is said about the others.
#include "ipc/endpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace exact::ipc {
namespace {

using ::testing::HasSubstr;

TEST(Endpoint, UnixPathIsTaken) {
  const auto endpoint = parse_endpoint("ipc:///run/user/1000/x.sock", true);
  ASSERT_TRUE(endpoint.is_ok()) << endpoint.status().to_string();
  EXPECT_EQ(endpoint->transport, Transport::unix_socket);
  EXPECT_EQ(endpoint->path, "/run/user/1000/x.sock");
}

TEST(Endpoint, UnixPathMustBeAbsoluteShortAndNameAFile) {
  for (const char* text : {"ipc://", "ipc://x.sock", "ipc://@abstract", "ipc://*", "ipc:///run/"}) {
    EXPECT_EQ(parse_endpoint(text, true).status().code(), Code::invalid) << text;
  }
  const std::string longest = "ipc://" + std::string(1, '/') + std::string(106, 'x');
  EXPECT_TRUE(parse_endpoint(longest, true).is_ok());
  const Status status = parse_endpoint(longest + "x", true).status();
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_THAT(status.message(), HasSubstr("108 bytes, a unix socket's has at most 107"));
  EXPECT_FALSE(parse_endpoint(std::string("ipc:///a\0b", 10), true).is_ok());
}

TEST(Endpoint, LoopbackTcpIsTaken) {
  for (const char* text :
       {"tcp://127.0.0.1:5555", "tcp://127.255.3.1:1", "tcp://[::1]:65535", "tcp://localhost:80"}) {
    EXPECT_TRUE(parse_endpoint(text, false).is_ok()) << text;
    EXPECT_TRUE(parse_endpoint(text, true).is_ok()) << text;
  }
  EXPECT_EQ(parse_endpoint("tcp://localhost:80", false)->address, "tcp://127.0.0.1:80");
  EXPECT_TRUE(parse_endpoint("tcp://[::1]:80", false)->is_ipv6);
  EXPECT_FALSE(parse_endpoint("tcp://127.0.0.1:80", false)->is_ipv6);
}

TEST(Endpoint, AnyFreePortIsForServers) {
  EXPECT_TRUE(parse_endpoint("tcp://127.0.0.1:*", true).is_ok());
  EXPECT_EQ(parse_endpoint("tcp://127.0.0.1:*", false).status().code(), Code::invalid);
}

TEST(Endpoint, TcpBeyondLoopbackIsUnsupported) {
  for (const char* text :
       {"tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://10.0.0.1:5555", "tcp://[::]:5555",
        "tcp://example.org:5555", "tcp://128.0.0.1:1", "tcp://127.0.0.1.evil.org:1",
        "tcp://127.0.0:1", "tcp://127.0.0.256:1", "tcp://127.0.0.1;10.0.0.1:1", "tcp://eth0:1",
        "tcp://127.0.0.1.:1", "tcp://:1", "tcp://127..0.1:1", "tcp://127.0.0.-1:1"}) {
    const Status status = parse_endpoint(text, true).status();
    EXPECT_EQ(status.code(), Code::unsupported) << text;
    EXPECT_THAT(status.message(), HasSubstr("CURVE"));
  }
}

TEST(Endpoint, PortMustBeANumberInRange) {
  for (const char* text : {"tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://127.0.0.1:0",
                           "tcp://127.0.0.1:65536", "tcp://127.0.0.1:80x", "tcp://127.0.0.1:-1",
                           "tcp://127.0.0.1:99999999999999999999", "tcp://127.0.0.1:+80"}) {
    EXPECT_EQ(parse_endpoint(text, true).status().code(), Code::invalid) << text;
  }
}

TEST(Endpoint, OtherTransportsAreRefused) {
  for (const char* text :
       {"", "inproc://x", "udp://127.0.0.1:1", "pgm://x", "IPC:///x", "ws://x"}) {
    EXPECT_EQ(parse_endpoint(text, true).status().code(), Code::invalid) << text;
  }
}

TEST(Endpoint, DefaultLiesInTheUsersRuntimeDirectory) {
  const char* before = std::getenv("XDG_RUNTIME_DIR");
  const std::string saved = before != nullptr ? before : "";
  ::setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  EXPECT_EQ(default_endpoint(), "ipc:///run/user/7/exact-rollout/worker.sock");
  for (const char* unusable : {"", "relative"}) {
    ::setenv("XDG_RUNTIME_DIR", unusable, 1);
    EXPECT_EQ(default_endpoint(),
              "ipc:///tmp/exact-rollout-" + std::to_string(::geteuid()) + "/worker.sock");
  }
  EXPECT_TRUE(parse_endpoint(default_endpoint(), true).is_ok());
  before != nullptr ? ::setenv("XDG_RUNTIME_DIR", saved.c_str(), 1) : ::unsetenv("XDG_RUNTIME_DIR");
}

}  // namespace
}  // namespace exact::ipc
