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

// Where the time goes; seconds, added up over calls. A backend adds to it from the thread that
// calls its operations.
struct CpuProfile {
  double total = 0;  // of all operations below
  double linear = 0;
  double attention = 0;
  double norm_rope = 0;  // rms_norm and rope
  double pointwise = 0;  // silu_mul and add
  double logits = 0;     // target_logprobs and sample
  double copies = 0;     // embed, gather_rows and store_kv
  double chain = 0;      // inside linear and attention: rule N1's chain, the mean of all threads
};

struct CpuOptions {
  CpuIsa isa = best_cpu_isa();
  int threads = 0;                // 0: one for each core that this process may use
  CpuProfile* profile = nullptr;  // if there, outlives the backend; off, it costs nothing
};

// unsupported when the machine lacks the instruction set; invalid when threads is out of range.
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options = {});

}  // namespace exact
