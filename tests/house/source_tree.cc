// source_tree.cc reads the folders that make up the project.
#include "tests/house/source_tree.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

namespace exact::house {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kFolders = {
    "kernels", "ipc",   "engine", "trainer_bridge", "journal", "worker", "examples",
    "bench",   "tests", "cmake",  "scripts",        "docs",    ".ci"};
const std::vector<std::string> kData = {"tests/golden/"};

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Scripts have no extension; anything with an unknown one is data.
bool is_text(const fs::path& path) {
  static const std::set<std::string> kExtensions = {"",     ".h",     ".cc",   ".cu", ".cuh", ".md",
                                                    ".txt", ".cmake", ".json", ".py", ".toml"};
  return kExtensions.contains(path.extension().string());
}

}  // namespace

std::vector<SourceFile> read_source_tree() {
  const fs::path root = EXACT_SOURCE_DIR;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  for (const std::string& folder : kFolders) {
    if (!fs::is_directory(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      if (entry.is_regular_file()) paths.push_back(entry.path());
    }
  }
  std::vector<SourceFile> files;
  for (const fs::path& path : paths) {
    const std::string name = path.lexically_relative(root).generic_string();
    if (starts_with_any(name, kData) || !is_text(path)) continue;
    files.push_back({name, read_file(path)});
  }
  std::sort(files.begin(), files.end(),
            [](const SourceFile& a, const SourceFile& b) { return a.path < b.path; });
  return files;
}

bool is_cpp(std::string_view path) {
  return path.ends_with(".h") || path.ends_with(".cc") || path.ends_with(".cu") ||
         path.ends_with(".cuh");
}

bool starts_with_any(std::string_view text, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [text](const std::string& prefix) { return text.starts_with(prefix); });
}

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

std::string describe(const std::vector<Finding>& findings) {
  std::string text = std::to_string(findings.size()) + " findings\n";
  for (const Finding& finding : findings) {
    text += finding.path + ":" + std::to_string(finding.line) + ": " + finding.message + "\n";
  }
  return text;
}

}  // namespace exact::house
