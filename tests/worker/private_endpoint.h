// private_endpoint.h owns an endpoint of a test's own.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

namespace exact::bridge_tests {

// "ipc://" in a directory of its own, which goes when the test ends.
class PrivateEndpoint {
 public:
  PrivateEndpoint() {
    std::string pattern = (std::filesystem::temp_directory_path() / "exact-bridge-XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  ~PrivateEndpoint() {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  PrivateEndpoint(const PrivateEndpoint&) = delete;
  PrivateEndpoint& operator=(const PrivateEndpoint&) = delete;
  std::string name() const { return "ipc://" + directory_ + "/worker.sock"; }
  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
};

}  // namespace exact::bridge_tests
