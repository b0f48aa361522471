// isa.cc owns the names of the instruction sets and the question which of them this machine has.
#include <string>

#include "kernels/cpu/cpu_backend.h"

namespace exact {

std::string_view cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::scalar:
      return "scalar";
    case CpuIsa::avx2:
      return "avx2";
    case CpuIsa::avx512:
      return "avx512";
  }
  return "unknown";
}

Result<CpuIsa> cpu_isa_from_name(std::string_view name) {
  if (name == "auto") return best_cpu_isa();
  for (const CpuIsa isa : {CpuIsa::scalar, CpuIsa::avx2, CpuIsa::avx512}) {
    if (name == cpu_isa_name(isa)) return isa;
  }
  return Status(Code::invalid, "instruction set '" + std::string(name) +
                                   "' is unknown: say auto, avx512, avx2 or scalar");
}

bool cpu_isa_available(CpuIsa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == CpuIsa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == CpuIsa::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  }
#endif
  return isa == CpuIsa::scalar;
}

CpuIsa best_cpu_isa() {
  if (cpu_isa_available(CpuIsa::avx512)) return CpuIsa::avx512;
  if (cpu_isa_available(CpuIsa::avx2)) return CpuIsa::avx2;
  return CpuIsa::scalar;
}

}  // namespace exact
