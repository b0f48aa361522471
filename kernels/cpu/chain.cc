// chain.cc owns what the chain kernels share: the choice of a table, and the literal step.
#include "kernels/cpu/chain.h"

#include "kernels/contract/tensor_core.h"

namespace exact::cpu {

const ChainKernels* chain_kernels(CpuIsa isa) {
  if (!cpu_isa_available(isa)) return nullptr;
#if defined(__x86_64__)
  if (isa == CpuIsa::avx512) return &kAvx512Chain;
  if (isa == CpuIsa::avx2) return &kAvx2Chain;
#endif
  return &kScalarChain;
}

float literal_step(const float* row, const uint16_t* panel, float accumulator) {
  uint16_t a[kChainStep];
  for (int i = 0; i < kChainStep; i++) a[i] = static_cast<uint16_t>(float_bits(row[i]) >> 16);
  return contract::tensor_core_step(a, 1, panel, kPanelColumns, accumulator);
}

}  // namespace exact::cpu
