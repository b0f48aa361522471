// special.h gathers the functions whose bits are Hopper's or CUDA's, not libm's: ex2, rsqrt, exp,
// log, sin, cos and pow.
#pragma once

#include "kernels/contract/exp_log.h"
#include "kernels/contract/power.h"
#include "kernels/contract/special_unit.h"
#include "kernels/contract/trig.h"
