// manifest.h owns the check of an update's manifest against the model's own tensor table: each
// tensor at most once, all of them in a whole update, with the right shape, type and a well-formed
// digest. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/tensor_table.h"
#include "ipc/messages.h"
#include "kernels/base/digest.h"
#include "kernels/base/result.h"

namespace exact::worker {

// A tensor of the stream: its place in the table, and what its bytes must be.
struct ExpectedTensor {
  size_t table_index = 0;
  uint64_t bytes = 0;
  Digest128 digest;
};

// The tensors in the manifest's order. invalid: names the first tensor that is wrong, and how.
Result<std::vector<ExpectedTensor>> match_manifest(const std::vector<ipc::ManifestTensor>& manifest,
                                                   const std::vector<TensorSpec>& table,
                                                   bool is_whole);

}  // namespace exact::worker
