// lt_tiles.h owns the project's own wishes of cuBLASLt, which come before its heuristic's list.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/lt_gemm.h"

namespace exact::cuda {

// Configurations that give each multiprocessor one tile at most, the best first; none where the
// output is too large for that, or so large that tiles no longer wait for their operands.
std::vector<LtConfig> one_wave_configs(int64_t tokens, int64_t out_features, int multiprocessors);

}  // namespace exact::cuda
