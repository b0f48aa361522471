// row_kernels_scalar.cc owns the row kernels compiled for the build's baseline.
#include "kernels/cpu/row_kernels_includes.h"

namespace exact::cpu {
namespace {
#include "kernels/cpu/row_kernels_body.h"
}  // namespace

const RowKernels kScalarRows = {rms_norm,      rotate_head,   silu_mul,  add,
                                finish_linear, softmax_block, scale,     finish_attention,
                                largest_logit, exp_sum,       sum_terms, weigh_terms,
                                widen,         temper,        exp_terms, entropy};

}  // namespace exact::cpu
