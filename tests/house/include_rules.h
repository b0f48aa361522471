// include_rules.h owns the arrows between folders (docs/architecture.md) as a check on #include
// lines.
#pragma once

#include "tests/house/source_tree.h"

namespace exact::house {

// Every include of `file` that its room may not have. A quoted include is a path from the root.
std::vector<Finding> check_includes(const SourceFile& file);

}  // namespace exact::house
