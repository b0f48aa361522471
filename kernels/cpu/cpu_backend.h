// cpu_backend.h makes the backend that runs everywhere: the whole contract on a CPU.
#pragma once

#include <memory>
#include <string_view>

#include "kernels/backend.h"

namespace exact {

// Instruction sets of the CPU backend; the same bits from each.
enum class CpuIsa : uint8_t { scalar = 0, avx2 = 1, avx512 = 2 };

std::string_view cpu_isa_name(CpuIsa isa);                // "scalar", "avx2", "avx512"
Result<CpuIsa> cpu_isa_from_name(std::string_view name);  // also "auto": the best of this machine
bool cpu_isa_available(CpuIsa isa);
CpuIsa best_cpu_isa();

struct CpuOptions {
  CpuIsa isa = best_cpu_isa();
  int threads = 0;  // 0: one for each core that this process may use
};

// unsupported when the machine lacks the instruction set; invalid when threads is out of range.
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options = {});

}  // namespace exact
