// memory.h owns the backend's buffers: zeroed, aligned to a cache line, large ones in huge pages,
// since a row of decoding walks through all weights and would otherwise wait for page tables.
#pragma once

#include <cstddef>

#include "kernels/base/result.h"
#include "kernels/base/tensor.h"

namespace exact::cpu {

// exhausted when there is no room.
Result<Buffer> allocate_zeroed(size_t bytes);

}  // namespace exact::cpu
