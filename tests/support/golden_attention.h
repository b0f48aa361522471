// golden_attention.h owns the check of an attention golden by the reference: PyTorch's tensors are
// (batch, heads, length, width), the reference's (length, heads * width).
#pragma once

#include <cstdint>
#include <string>

#include "tests/support/golden.h"
#include "tests/support/golden_key.h"

namespace exact {

struct AttentionGolden {
  uint64_t seed = 0;
  std::string prefix;  // inputs are "<prefix>.q.<width>", ".k", ".v"
  int32_t query_heads = 0;
  int32_t kv_heads = 0;
  int64_t length = 0;
  int64_t stored_heads = 0;  // of batch 0
  double range = 0;          // of q and k; v is in (-1, 1)
};

// The width is the key's first number.
void check_attention_golden(const GoldenFile& golden, const GoldenKey& key,
                            const AttentionGolden& about);

}  // namespace exact
