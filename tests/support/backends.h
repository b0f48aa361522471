// backends.h owns what tests that run on each backend share: their names, and why one is missing.
#pragma once

#include <string>
#include <vector>

#include "kernels/make_backend.h"

namespace exact {

// Empty where the backend can be made; else the reason why there is nothing to test.
inline std::string missing_backend(const BackendOptions& options) {
  if (options.kind == "cpu" && !cpu_isa_available(options.cpu.isa)) {
    return "this machine lacks " + std::string(cpu_isa_name(options.cpu.isa));
  }
  const auto backend = make_backend(options);
  return backend.is_ok() ? "" : backend.status().message();
}

inline bool have_cuda_backend() {
  static const bool have = missing_backend({"cuda", {}, {}}).empty();
  return have;
}

}  // namespace exact
