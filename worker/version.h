// version.h owns the version of the program, as CMakeLists.txt has it.
#pragma once

#include <string_view>

namespace exact::worker {

inline constexpr std::string_view kVersion = EXACT_VERSION;

}  // namespace exact::worker
