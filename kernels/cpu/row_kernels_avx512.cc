// row_kernels_avx512.cc owns the row kernels compiled for AVX-512.
#include "kernels/cpu/row_kernels_includes.h"

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

namespace exact::cpu {
namespace {
#include "kernels/cpu/row_kernels_body.h"
}  // namespace

const RowKernels kAvx512Rows = {rms_norm,      rotate_head,   silu_mul,  add,
                                finish_linear, softmax_block, scale,     finish_attention,
                                largest_logit, exp_sum,       sum_terms, weigh_terms,
                                widen,         temper,        exp_terms, entropy};

}  // namespace exact::cpu

#pragma GCC pop_options
#endif
