// temporary_directory.h owns a directory of mode 0700 that goes with its owner, and what is in it.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "kernels/base/check.h"

namespace exact::ipc {

class TemporaryDirectory {
 public:
  TemporaryDirectory() : path_(::testing::TempDir() + "/exact-ipc-XXXXXX") {
    EXACT_CHECK(::mkdtemp(path_.data()) != nullptr, "no temporary directory");
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace exact::ipc
