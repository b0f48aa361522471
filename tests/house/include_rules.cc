// include_rules.cc holds the two tables: which rooms a room may include, and who may see which
// library. The longest matching prefix decides, so a file can have a rule of its own.
#include "tests/house/include_rules.h"

#include <cctype>

namespace exact::house {
namespace {

struct Room {
  std::string prefix;
  std::vector<std::string> may_include;  // prefixes of quoted includes
};

const std::vector<Room> kRooms = {
    {"kernels/base/", {"kernels/base/"}},
    {"kernels/backend.h", {"kernels/base/"}},
    {"kernels/contract/", {"kernels/base/", "kernels/backend.h", "kernels/contract/"}},
    {"kernels/reference/",
     {"kernels/base/", "kernels/backend.h", "kernels/contract/", "kernels/reference/"}},
    {"kernels/cpu/", {"kernels/base/", "kernels/backend.h", "kernels/contract/", "kernels/cpu/"}},
    {"kernels/cuda/", {"kernels/base/", "kernels/backend.h", "kernels/contract/", "kernels/cuda/"}},
    {"kernels/make_backend.",
     {"kernels/base/", "kernels/backend.h", "kernels/cpu/", "kernels/cuda/",
      "kernels/make_backend.h"}},
    {"ipc/", {"ipc/", "kernels/base/"}},
    {"journal/", {"journal/", "ipc/", "kernels/base/"}},
    {"engine/", {"engine/", "kernels/base/", "kernels/backend.h", "kernels/contract/"}},
    {"replay/", {"replay/", "journal/", "engine/", "ipc/", "kernels/base/", "kernels/backend.h"}},
    {"trainer_bridge/", {"trainer_bridge/", "ipc/", "engine/", "kernels/"}},
    {"worker/", {"worker/", "replay/", "journal/", "engine/", "ipc/", "kernels/"}},
    {"examples/", {"examples/", "trainer_bridge/", "ipc/", "engine/", "kernels/"}},
    {"bench/", {"bench/", "worker/", "trainer_bridge/", "journal/", "engine/", "ipc/", "kernels/"}},
    {"tests/",
     {"tests/", "worker/", "trainer_bridge/", "replay/", "journal/", "ipc/", "engine/",
      "kernels/"}},
};

struct Library {
  std::string name;
  std::vector<std::string> headers;  // prefixes of angle includes
  std::vector<std::string> seen_by;  // prefixes of files
};

const std::vector<Library> kLibraries = {
    {"ZeroMQ", {"zmq"}, {"ipc/socket.", "tests/ipc/", "tests/worker/"}},
    {"Boost", {"boost/"}, {"ipc/shm_region.", "ipc/weight_shm.", "tests/ipc/"}},
    {"cereal", {"cereal/"}, {"ipc/", "journal/", "tests/ipc/"}},
    {"xxHash", {"xxh"}, {"kernels/base/", "tests/"}},
    {"NCCL", {"nccl"}, {"kernels/cuda/", "tests/cuda/"}},
    {"CUDA",
     {"cuda", "cublas", "nv"},
     {"kernels/cuda/", "tests/cuda/", "bench/", "ipc/cuda_support.", "ipc/nccl_library.",
      "ipc/weight_cuda_ipc.cc", "ipc/weight_nccl.cc"}},
    {"nlohmann json",
     {"nlohmann/"},
     {"engine/", "journal/", "worker/", "trainer_bridge/", "examples/", "tests/", "bench/"}},
    {"CLI11", {"CLI/"}, {"worker/", "examples/", "bench/"}},
    {"spdlog", {"spdlog/"}, {"worker/"}},
    {"nanobind", {"nanobind/", "Python.h"}, {"trainer_bridge/python/"}},
    {"GoogleTest", {"gtest/", "gmock/"}, {"tests/"}},
    {"Google Benchmark", {"benchmark/"}, {"bench/"}},
};

// What host and device share must compile for both: no threads, no streams, no files.
const std::vector<std::string> kNotInContractHeaders = {
    "atomic",      "chrono",       "condition_variable",
    "deque",       "filesystem",   "fstream",
    "future",      "iostream",     "list",
    "map",         "mutex",        "random",
    "set",         "shared_mutex", "sstream",
    "thread",      "unistd.h",     "unordered_map",
    "immintrin.h", "unordered_set"};

struct Include {
  std::string path;
  bool quoted = false;
};

// `#include "a"` or `#include <a>`, with any spacing; an empty path for every other line.
Include parse_include(std::string_view line) {
  const auto skip_spaces = [&line] {
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.front()))) {
      line.remove_prefix(1);
    }
  };
  const auto skip = [&](std::string_view word) {
    skip_spaces();
    if (!line.starts_with(word)) return false;
    line.remove_prefix(word.size());
    return true;
  };
  if (!skip("#") || !skip("include")) return {};
  skip_spaces();
  if (line.empty() || (line.front() != '"' && line.front() != '<')) return {};
  const bool quoted = line.front() == '"';
  line.remove_prefix(1);
  const size_t end = line.find(quoted ? '"' : '>');
  if (end == std::string_view::npos) return {};
  return {std::string(line.substr(0, end)), quoted};
}

std::string project_violation(const std::string& file, const std::string& header) {
  const Room* room = nullptr;
  for (const Room& candidate : kRooms) {
    if (!file.starts_with(candidate.prefix)) continue;
    if (room == nullptr || candidate.prefix.size() > room->prefix.size()) room = &candidate;
  }
  if (room == nullptr) return "this folder has no room in include_rules.cc";
  if (starts_with_any(header, room->may_include)) return "";
  return room->prefix + " may not include \"" + header + "\": arrows point down only";
}

std::string library_violation(const std::string& file, const std::string& header) {
  for (const Library& library : kLibraries) {
    if (!starts_with_any(header, library.headers)) continue;
    if (!starts_with_any(file, library.seen_by)) {
      return "<" + header + "> of " + library.name + " stops in " + library.seen_by.front() + "*";
    }
  }
  if (file.starts_with("kernels/contract/") && file.ends_with(".h")) {
    for (const std::string& banned : kNotInContractHeaders) {
      if (header == banned) return "<" + header + "> in a header that host and device share";
    }
  }
  return "";
}

}  // namespace

std::vector<Finding> check_includes(const SourceFile& file) {
  std::vector<Finding> findings;
  int line_number = 0;
  for (const std::string_view line : split_lines(file.text)) {
    ++line_number;
    const Include include = parse_include(line);
    if (include.path.empty()) continue;
    const std::string violation = include.quoted ? project_violation(file.path, include.path)
                                                 : library_violation(file.path, include.path);
    if (!violation.empty()) findings.push_back({file.path, line_number, violation});
  }
  return findings;
}

}  // namespace exact::house
