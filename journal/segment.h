// segment.h owns the names of a journal's files: DIRECTORY/<first record id, 20 digits>.exj. Other
// files in the directory are not the journal's and are left alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/result.h"

namespace exact::journal {

struct Segment {
  std::string path;
  uint64_t first_id = 0;  // by its name
  uint64_t bytes = 0;     // when it was listed
};

std::string segment_name(uint64_t first_id);

// In order of first_id; empty where there is none. not_found: no such directory; device: it can't
// be read.
Result<std::vector<Segment>> list_segments(const std::string& directory);

}  // namespace exact::journal
