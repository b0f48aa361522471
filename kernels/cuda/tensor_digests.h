// tensor_digests.h owns the digests of tensors in device memory, read once at its speed: what a
// trainer puts into an update's manifest.
#pragma once

#include <cuda_runtime_api.h>

#include <span>
#include <vector>

#include "kernels/base/digest.h"
#include "kernels/base/result.h"

namespace exact::cuda {

// Of tensors on the current GPU, after what `stream` has been given; waits for them. Each begins at
// and has a multiple of 16 bytes, else invalid.
Result<std::vector<Digest128>> device_tensor_digests(
    std::span<const std::span<const std::byte>> tensors, cudaStream_t stream = nullptr);

}  // namespace exact::cuda
