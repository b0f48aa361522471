// config_rope.h owns the rotary embedding's part of a config.json.
#pragma once

#include <cstdint>

#include "engine/config_fields.h"
#include "kernels/contract/rope.h"

namespace exact {

// Fills in all of `config` but head_width. transformers 5 has `rope_parameters` with everything in
// it; transformers 4 has `rope_theta` beside a `rope_scaling` that may be null. The status is of
// the rope's own object; what is wrong beside it is kept in `fields`.
// unsupported: a kind or a field that transformers 5.17 would not read as written.
Status read_rope(ConfigFields& fields, int32_t max_positions, RopeConfig& config);

}  // namespace exact
