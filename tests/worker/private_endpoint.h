// private_endpoint.h owns an endpoint of a test's own.
#pragma once

#include <string>

#include "tests/support/temporary_directory.h"

namespace exact::bridge_tests {

// "ipc://" in a directory of its own, which goes when the test ends.
class PrivateEndpoint {
 public:
  std::string name() const { return "ipc://" + directory_.file("worker.sock"); }
  const std::string& directory() const { return directory_.path(); }

 private:
  TemporaryDirectory directory_;
};

}  // namespace exact::bridge_tests
