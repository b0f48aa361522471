// cuda_support.h owns what the GPU transports ask of the driver: whose memory an address is, and
// which GPU this is. Only in builds with CUDA.
#pragma once

#if EXACT_WITH_CUDA

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/result.h"

namespace exact::ipc {

// `what`: the sentence before the runtime's own. The runtime's last error is cleared.
Status cuda_error(cudaError_t error, std::string_view what, Code code = Code::device);

// The allocation that an address of device memory lies in, by the driver.
struct AddressRange {
  const std::byte* base = nullptr;
  uint64_t bytes = 0;
};
Result<AddressRange> address_range(const void* address);

// Of the calling thread's current GPU: 32 lower-case hex digits, as Backend::device_uuid().
Result<std::string> current_device_uuid();

}  // namespace exact::ipc

#endif
