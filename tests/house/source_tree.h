// source_tree.h owns the walk over the project's own files, for tests that read them. It looks at
// named folders only: build trees and whatever else lies beside them are not the project.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace exact::house {

struct SourceFile {
  std::string path;  // from the root, with '/'
  std::string text;
};

struct Finding {
  std::string path;
  int line = 0;  // from 1; 0: the file as a whole
  std::string message;
};

// Every text file of the project in the order of its path; goldens are data and left out.
std::vector<SourceFile> read_source_tree();

bool is_cpp(std::string_view path);  // .h, .cc, .cu, .cuh
bool starts_with_any(std::string_view text, const std::vector<std::string>& prefixes);
std::vector<std::string_view> split_lines(std::string_view text);

// "file:line: message", one a line, for an assertion's output.
std::string describe(const std::vector<Finding>& findings);

}  // namespace exact::house
