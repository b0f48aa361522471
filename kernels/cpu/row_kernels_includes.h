// row_kernels_includes.h gathers what row_kernels_body.h uses, so that all of it is compiled before
// a file switches to a wide instruction set. None of these define a function that is not inlined.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/attention.h"
#include "kernels/contract/log_softmax.h"
#include "kernels/contract/norm.h"
#include "kernels/contract/pointwise.h"
#include "kernels/contract/reduce.h"
#include "kernels/contract/sampling.h"
#include "kernels/cpu/row_kernels.h"
