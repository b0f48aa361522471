#include "ipc/endpoint.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <utility>

namespace exact::ipc {
namespace {

constexpr std::string_view kIpc = "ipc://";
constexpr std::string_view kTcp = "tcp://";

Status malformed(std::string_view text, const std::string& what) {
  return Status(Code::invalid, "endpoint '" + std::string(text) + "': " + what);
}

// Decimal digits alone, at most `limit`.
bool is_number(std::string_view text, unsigned limit) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return !text.empty() && error == std::errc() && end == text.data() + text.size() &&
         value <= limit;
}

// 127.0.0.0/8, written as four numbers: nothing for a resolver to decide.
bool is_ipv4_loopback(std::string_view host) {
  if (!host.starts_with("127.")) return false;
  int numbers = 0;
  while (true) {
    const size_t dot = host.find('.');
    if (!is_number(host.substr(0, dot), 255)) return false;
    ++numbers;
    if (dot == std::string_view::npos) return numbers == 4;
    host.remove_prefix(dot + 1);
  }
}

Result<Endpoint> parse_unix(std::string_view text) {
  const std::string_view path = text.substr(kIpc.size());
  if (!path.starts_with('/')) {
    return malformed(text,
                     "an ipc endpoint is ipc:// and an absolute path, as in "
                     "ipc:///run/user/1000/exact-rollout/worker.sock");
  }
  if (path.ends_with('/') || path.find('\0') != std::string_view::npos) {
    return malformed(text, "the path must name a file");
  }
  if (path.size() > kMaxSocketPathBytes) {
    return malformed(text, "the path has " + std::to_string(path.size()) +
                               " bytes, a unix socket's has at most " +
                               std::to_string(kMaxSocketPathBytes) + ": choose a shorter one");
  }
  Endpoint endpoint;
  endpoint.address = text;
  endpoint.path = path;
  return endpoint;
}

Result<Endpoint> parse_tcp(std::string_view text, bool is_server) {
  const std::string_view rest = text.substr(kTcp.size());
  const size_t colon = rest.rfind(':');
  const std::string_view host = rest.substr(0, colon);
  const std::string_view port =
      colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
  const bool is_wildcard = port == "*" && is_server;
  if (!is_wildcard && (!is_number(port, 65535) || is_number(port, 0))) {
    return malformed(text, is_server ? "the port must be 1 to 65535, or * for any free one"
                                     : "the port must be 1 to 65535");
  }
  Endpoint endpoint;
  endpoint.transport = Transport::loopback_tcp;
  endpoint.is_ipv6 = host == "[::1]";
  if (host != "localhost" && !endpoint.is_ipv6 && !is_ipv4_loopback(host)) {
    return Status(Code::unsupported,
                  "endpoint '" + std::string(text) +
                      "': TCP beyond loopback needs CURVE keys, which this version does not have; "
                      "use ipc://, or 127.0.0.1 through an SSH tunnel");
  }
  endpoint.address = std::string(kTcp) + (host == "localhost" ? "127.0.0.1" : std::string(host)) +
                     ":" + std::string(port);
  return endpoint;
}

}  // namespace

Result<Endpoint> parse_endpoint(std::string_view text, bool is_server) {
  if (text.starts_with(kIpc)) return parse_unix(text);
  if (text.starts_with(kTcp)) return parse_tcp(text, is_server);
  return malformed(text, "it must begin with ipc:// or tcp://");
}

std::string default_endpoint() {
  const char* runtime_directory = std::getenv("XDG_RUNTIME_DIR");
  if (runtime_directory != nullptr && runtime_directory[0] == '/') {
    return "ipc://" + std::string(runtime_directory) + "/exact-rollout/worker.sock";
  }
  return "ipc:///tmp/exact-rollout-" + std::to_string(::geteuid()) + "/worker.sock";
}

}  // namespace exact::ipc
