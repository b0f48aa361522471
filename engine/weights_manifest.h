// weights_manifest.h owns what a weights store says of one version: which tensors it has, in the
// table's order, and which files of the model's directory go with them. JSON; docs/replay.md.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor_table.h"
#include "kernels/base/digest.h"
#include "kernels/base/result.h"

namespace exact {

struct StoredTensor {
  std::string name;
  std::vector<int64_t> shape;  // as in Hugging Face's files: one dimension or two
  Digest128 digest;            // tensor_digest of its bytes
  uint64_t bytes = 0;          // bf16; not in the JSON
};

struct StoredModel {
  Digest128 weights_digest;     // of names and tensor digests, as WeightSlot::digest()
  std::string contract_id;      // 32 hex digits
  uint64_t weight_version = 0;  // the last that these weights had
  uint64_t stored_us = 0;       // when they were stored last, since 1970, UTC
  // config.json, and generation_config.json where there is one: digest128 of the text.
  std::map<std::string, Digest128> files;
  std::vector<StoredTensor> tensors;
};

StoredTensor stored_tensor(const TensorSpec& spec, const Digest128& digest);
Digest128 digest_of(const std::vector<StoredTensor>& tensors);

// The only files that a manifest may name; the first must be there.
inline constexpr std::string_view kStoredFiles[] = {"config.json", "generation_config.json"};

std::string manifest_text(const StoredModel& model);
// corrupt: not JSON, a field that is missing, unknown or of the wrong kind (by name), a tensor
// twice, or a weights_digest that is not that of the tensors. unsupported: another format.
Result<StoredModel> parse_manifest(std::string_view text);

}  // namespace exact
