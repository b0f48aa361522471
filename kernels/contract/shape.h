// shape.h owns the domain of the contract: the shapes for which the rules were measured. Everything
// else is refused here, by the name of the dimension, and is never served with other bits.
#pragma once

#include <cstdint>

#include "kernels/base/result.h"

namespace exact::contract {

// Rule N1: out_features a positive multiple of 8, in_features of 16.
Status check_linear_shape(int64_t out_features, int64_t in_features);

// Rules N2, N3: a multiple of 8, at least 32.
Status check_norm_width(int64_t width);

// Rule N5: a head width with a measured key block.
Status check_head_width(int64_t head_width);

// Rule N5: query_heads is a positive multiple of kv_heads, and the head width as above.
Status check_attention_shape(int64_t query_heads, int64_t kv_heads, int64_t head_width);

// Rule N7: a multiple of 8, from 32 to 2^20.
Status check_vocabulary(int64_t vocabulary);

}  // namespace exact::contract
