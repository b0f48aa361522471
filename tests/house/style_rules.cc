// style_rules.cc holds the rules as tables of words. The words are spelled in halves, so that this
// file does not find itself.
#include "tests/house/style_rules.h"

#include <algorithm>

namespace exact::house {
namespace {

struct Word {
  std::string text;
  std::string why;
};

const std::vector<Word> kForbiddenNumerics = {
    {"-ffast"
     "-math",
     "fast-math changes bits"},
    {"use_fast"
     "_math",
     "fast-math changes bits"},
    {"-Ofa"
     "st",
     "implies fast-math"},
    {"-funsafe"
     "-math",
     "unsafe math changes bits"},
    {"-ffp-contract=fa"
     "st",
     "contraction changes bits"},
    {"fp_contract("
     "on",
     "contraction changes bits"},
    {"--fmad=tr"
     "ue",
     "contraction changes bits"},
    {"-march=na"
     "tive",
     "a program must run on other machines: choose at run time"},
    {"atomic"
     "Add",
     "the order of atomic additions is nobody's"},
    {"std::atomic<fl"
     "oat",
     "the order of atomic additions is nobody's"},
    {"std::atomic<dou"
     "ble",
     "the order of atomic additions is nobody's"},
    {"__ex"
     "pf(",
     "not the contract's exp: use kernels/contract/special.h"},
    {"__lo"
     "gf(",
     "not the contract's log: use kernels/contract/special.h"},
    {"std::red"
     "uce(",
     "the order of std's reduction is not written down"},
};

const std::vector<Word> kBadManners = {
    {"std::co"
     "ut",
     "libraries do not print"},
    {"std::ce"
     "rr",
     "libraries do not print"},
    {" std::exi"
     "t(",
     "libraries do not exit"},
    {" exi"
     "t(",
     "libraries do not exit"},
    {" prin"
     "tf(",
     "libraries do not print"},
    {"std::prin"
     "tf(",
     "libraries do not print"},
    {"std::fprin"
     "tf(",
     "libraries do not print"},
    {"fmt::prin"
     "t(",
     "libraries do not print"},
    {" thr"
     "ow ",
     "expected errors are Status (kernels/base/result.h)"},
    {"shared_"
     "ptr<",
     "one owner a thing"},
};
const std::vector<std::string> kLibraryFolders = {"kernels/", "ipc/", "journal/", "engine/",
                                                  "trainer_bridge/"};
// check.cc prints the bug that it dies of. cereal's archives can only report by exceptions, which
// codec.cc turns into Status. nanobind takes a Python exception as a C++ one.
const std::vector<std::string> kExempt = {"kernels/base/check.cc", "ipc/bounded_archive.",
                                          "trainer_bridge/python/src/errors.h"};

const std::vector<Word> kStrangers = {
    {"/wo"
     "rk/",
     "a path of one machine"},
    {"/ro"
     "ot/",
     "a path of one machine"},
    {"/ho"
     "me/",
     "a path of one machine"},
    {"/tm"
     "p/bash",
     "a path of one machine"},
    {"TO"
     "DO",
     "unfinished work"},
    {"FIX"
     "ME",
     "unfinished work"},
    {"DISA"
     "BLED_",
     "a test that does not run"},
};

std::string_view without_comment(std::string_view line) {
  return line.substr(0, std::min(line.find("//"), line.size()));
}

std::vector<Finding> find_words(const SourceFile& file, const std::vector<Word>& words,
                                bool in_comments) {
  std::vector<Finding> findings;
  int line_number = 0;
  for (const std::string_view whole : split_lines(file.text)) {
    ++line_number;
    const std::string_view line = in_comments ? whole : without_comment(whole);
    for (const Word& word : words) {
      if (line.find(word.text) == std::string_view::npos) continue;
      if (line.find("std::bad_alloc") != std::string_view::npos) continue;  // the language's own
      findings.push_back({file.path, line_number, "'" + word.text + "': " + word.why});
    }
  }
  return findings;
}

// UTF-8 characters, not bytes.
int columns_of(std::string_view line) {
  return static_cast<int>(std::count_if(line.begin(), line.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xc0u) != 0x80u;
  }));
}

bool is_build_file(std::string_view path) {
  return path.ends_with("CMakeLists.txt") || path.ends_with(".cmake") ||
         path == "CMakePresets.json";
}

}  // namespace

std::vector<Finding> check_size(const SourceFile& file) {
  std::vector<Finding> findings;
  const std::vector<std::string_view> lines = split_lines(file.text);
  const int line_count = static_cast<int>(lines.size());
  if (line_count > kMaxFileLines && !file.path.ends_with(".md") && file.path != "LICENSE") {
    findings.push_back(
        {file.path, line_count,
         "more than " + std::to_string(kMaxFileLines) + " lines: split it where an idea ends"});
  }
  if (!is_cpp(file.path)) return findings;
  for (int index = 0; index < line_count; ++index) {
    const int columns = columns_of(lines[static_cast<size_t>(index)]);
    if (columns <= kMaxColumns) continue;
    findings.push_back({file.path, index + 1, std::to_string(columns) + " columns"});
  }
  return findings;
}

std::vector<Finding> check_opening(const SourceFile& file) {
  std::vector<Finding> findings;
  if (!is_cpp(file.path)) return findings;
  if (!file.text.starts_with("// ") && !file.text.starts_with("#include")) {
    findings.push_back({file.path, 1, "a file opens with what it owns: // name.h owns ..."});
  }
  if (file.path.ends_with(".h") && file.text.find("#pragma once") == std::string::npos) {
    findings.push_back({file.path, 1, "a header without #pragma once"});
  }
  if (!file.text.ends_with('\n')) {
    findings.push_back({file.path, 0, "the last line does not end"});
  }
  return findings;
}

std::vector<Finding> check_numerics(const SourceFile& file) {
  if (!is_cpp(file.path) && !is_build_file(file.path)) return {};
  return find_words(file, kForbiddenNumerics, /*in_comments=*/false);
}

std::vector<Finding> check_manners(const SourceFile& file) {
  if (!is_cpp(file.path) || !starts_with_any(file.path, kLibraryFolders)) return {};
  if (starts_with_any(file.path, kExempt)) return {};
  return find_words(file, kBadManners, /*in_comments=*/false);
}

std::vector<Finding> check_strangers(const SourceFile& file) {
  if (file.path == "LICENSE") return {};
  return find_words(file, kStrangers, /*in_comments=*/true);
}

}  // namespace exact::house
