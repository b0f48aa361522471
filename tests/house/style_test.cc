// style_test.cc: the house rules hold in every file, and each rule can fail.
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/house/style_rules.h"

namespace exact::house {
namespace {

using Check = std::vector<Finding> (*)(const SourceFile&);

std::vector<Finding> over_the_tree(Check check) {
  std::vector<Finding> findings;
  for (const SourceFile& file : read_source_tree()) {
    for (Finding& finding : check(file)) findings.push_back(std::move(finding));
  }
  return findings;
}

void expect_clean(Check check) {
  const std::vector<Finding> findings = over_the_tree(check);
  EXPECT_TRUE(findings.empty()) << describe(findings);
}

std::string lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += "x\n";
  return text;
}

TEST(Style, FilesAndLinesAreShort) {
  expect_clean(check_size);
  for (const SourceFile& file : read_source_tree()) {
    const size_t line_count = split_lines(file.text).size();
    if (!is_cpp(file.path) || line_count <= kLongFileLines) continue;
    std::printf("long: %s has %zu lines\n", file.path.c_str(), line_count);
  }
}

TEST(Style, FilesOpenWithWhatTheyOwn) {
  expect_clean(check_opening);
}
TEST(Style, NothingThatChangesBitsIsWritten) {
  expect_clean(check_numerics);
}
TEST(Style, LibrariesDoNotPrintExitOrThrow) {
  expect_clean(check_manners);
}
TEST(Style, NoMachinePathsAndNothingUnfinished) {
  expect_clean(check_strangers);
}

TEST(StyleRules, ALongFileIsCaught) {
  EXPECT_EQ(check_size({"engine/a.cc", lines(kMaxFileLines)}).size(), 0u);
  EXPECT_EQ(check_size({"engine/a.cc", lines(kMaxFileLines + 1)}).size(), 1u);
}

TEST(StyleRules, ALongLineIsCaught) {
  EXPECT_EQ(check_size({"engine/a.cc", std::string(100, 'x') + "\n"}).size(), 0u);
  EXPECT_EQ(check_size({"engine/a.cc", std::string(101, 'x') + "\n"}).size(), 1u);
  EXPECT_EQ(check_size({"docs/a.md", std::string(101, 'x') + "\n"}).size(), 0u);
}

TEST(StyleRules, ColumnsAreCharactersNotBytes) {
  std::string line;
  for (int i = 0; i < 100; ++i) line += "\xc3\xa9";
  EXPECT_EQ(check_size({"engine/a.cc", line + "\n"}).size(), 0u);
}

TEST(StyleRules, AMissingOpeningIsCaught) {
  EXPECT_EQ(check_opening({"engine/a.cc", "// a.cc owns a.\n"}).size(), 0u);
  EXPECT_EQ(check_opening({"engine/a.cc", "\n// a.cc owns a.\n"}).size(), 1u);
  EXPECT_EQ(check_opening({"engine/a.h", "// a.h owns a.\n"}).size(), 1u);
  EXPECT_EQ(check_opening({"engine/a.h", "// a.h owns a.\n#pragma once\n"}).size(), 0u);
}

TEST(StyleRules, ForbiddenNumericsAreCaught) {
  EXPECT_EQ(check_numerics({"a/CMakeLists.txt",
                            "add(-ffast"
                            "-math)\n"})
                .size(),
            1u);
  EXPECT_EQ(check_numerics({"a.cmake",
                            "set(X -march=na"
                            "tive)\n"})
                .size(),
            1u);
  EXPECT_EQ(check_numerics({"kernels/cuda/a.cu",
                            "atomic"
                            "Add(&x, y);\n"})
                .size(),
            1u);
  EXPECT_EQ(check_numerics({"docs/a.md",
                            "no -ffast"
                            "-math here\n"})
                .size(),
            0u);
}

TEST(StyleRules, LibrariesThatPrintOrThrowAreCaught) {
  EXPECT_EQ(check_manners({"engine/a.cc",
                           "std::co"
                           "ut << 1;\n"})
                .size(),
            1u);
  EXPECT_EQ(check_manners({"ipc/a.cc",
                           "  thr"
                           "ow 1;\n"})
                .size(),
            1u);
  EXPECT_EQ(check_manners({"ipc/a.cc",
                           "x();  // may thr"
                           "ow here\n"})
                .size(),
            0u);
  EXPECT_EQ(check_manners({"ipc/a.cc",
                           "std::snprin"
                           "tf(a, 1, b);\n"})
                .size(),
            0u);
  EXPECT_EQ(check_manners({"worker/a.cc",
                           "std::co"
                           "ut << 1;\n"})
                .size(),
            0u);
}

TEST(StyleRules, MachinePathsAndUnfinishedWorkAreCaught) {
  EXPECT_EQ(check_strangers({"docs/a.md",
                             "see /ro"
                             "ot/x\n"})
                .size(),
            1u);
  EXPECT_EQ(check_strangers({"engine/a.cc",
                             "// TO"
                             "DO\n"})
                .size(),
            1u);
  EXPECT_EQ(check_strangers({"engine/a.cc", "// to do it well\n"}).size(), 0u);
}

}  // namespace
}  // namespace exact::house
