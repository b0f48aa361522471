// row_kernels.cc owns the choice of a table of row kernels.
#include "kernels/cpu/row_kernels.h"

namespace exact::cpu {

const RowKernels* row_kernels(CpuIsa isa) {
  if (!cpu_isa_available(isa)) return nullptr;
#if defined(__x86_64__)
  if (isa == CpuIsa::avx512) return &kAvx512Rows;
  if (isa == CpuIsa::avx2) return &kAvx2Rows;
#endif
  return &kScalarRows;
}

}  // namespace exact::cpu
