#include "ipc/cuda_support.h"

#if EXACT_WITH_CUDA

#include "kernels/base/hex.h"

namespace exact::ipc {

Status cuda_error(cudaError_t error, std::string_view what, Code code) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // it is reported here, and must not be found by the next call
  return Status(code, std::string(what) + " (" + cudaGetErrorString(error) + ")");
}

Result<AddressRange> address_range(const void* address) {
  // The runtime has no such function; it finds the driver's, so that nothing links to libcuda.
  using GetAddressRange = int (*)(unsigned long long*, size_t*, unsigned long long);
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  EXACT_RETURN_IF_ERROR(
      cuda_error(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &found, 13000,
                                                  cudaEnableDefault, &result),
                 "cuMemGetAddressRange"));
  if (found == nullptr || result != cudaDriverEntryPointSuccess) {
    return Status(Code::device, "the driver has no cuMemGetAddressRange: it is too old");
  }
  unsigned long long base = 0;
  size_t bytes = 0;
  const int error = reinterpret_cast<GetAddressRange>(found)(
      &base, &bytes, reinterpret_cast<unsigned long long>(address));
  if (error != 0) {
    return Status(Code::invalid,
                  "an address is not in device memory that the driver knows (CUresult " +
                      std::to_string(error) + ")");
  }
  return AddressRange{reinterpret_cast<const std::byte*>(base), bytes};
}

Result<std::string> current_device_uuid() {
  int device = 0;
  cudaDeviceProp properties{};
  EXACT_RETURN_IF_ERROR(cuda_error(cudaGetDevice(&device), "the current GPU"));
  EXACT_RETURN_IF_ERROR(
      cuda_error(cudaGetDeviceProperties(&properties, device), "the GPU's properties"));
  return hex_text(std::as_bytes(std::span(properties.uuid.bytes)));
}

}  // namespace exact::ipc

#endif
