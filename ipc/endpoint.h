// endpoint.h owns what an endpoint may be: "ipc:///absolute/path" in a directory that nobody else
// can write to, or "tcp://LOOPBACK:PORT". TCP beyond loopback needs CURVE keys, which this version
// does not have, so it is refused. Connects and binds nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/result.h"

namespace exact::ipc {

inline constexpr size_t kMaxSocketPathBytes = 107;  // sockaddr_un's 108 less the final zero

enum class Transport : uint8_t { unix_socket, loopback_tcp };

struct Endpoint {
  Transport transport = Transport::unix_socket;
  std::string address;  // for ZeroMQ; "localhost" is written as 127.0.0.1, so no resolver decides
  std::string path;     // of the unix socket
  bool is_ipv6 = false;
};

// invalid: malformed, says how; unsupported: an address that is not this machine's loopback.
// A port of "*" is for servers only.
Result<Endpoint> parse_endpoint(std::string_view text, bool is_server);

// ipc://$XDG_RUNTIME_DIR/exact-rollout/worker.sock, or ipc:///tmp/exact-rollout-<uid>/worker.sock
std::string default_endpoint();

}  // namespace exact::ipc
