// style_rules.h owns the house rules that a program can see (CONTRIBUTING.md); clang-format owns
// the layout.
#pragma once

#include "tests/house/source_tree.h"

namespace exact::house {

inline constexpr int kMaxFileLines = 500;
inline constexpr int kLongFileLines = 300;  // worth a second thought, allowed
inline constexpr int kMaxColumns = 100;

std::vector<Finding> check_size(const SourceFile& file);      // lines of a file, columns of a line
std::vector<Finding> check_opening(const SourceFile& file);   // what it owns, in its first line
std::vector<Finding> check_numerics(const SourceFile& file);  // rule N10: what must not be written
std::vector<Finding> check_manners(
    const SourceFile& file);  // libraries do not print, exit or throw
std::vector<Finding> check_strangers(const SourceFile& file);  // machine paths, unfinished work

}  // namespace exact::house
