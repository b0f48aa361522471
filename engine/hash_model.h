// hash_model.h owns models whose weights come from an integer hash (docs/numerics.md, "Goldens"):
// anyone can rebuild the same bytes from a config and a seed, so nobody has to ship them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "engine/tensor_table.h"

namespace exact {

struct HashModelOptions {
  uint64_t seed = 0;
  std::function<void(int64_t bytes_done, int64_t bytes_total)> progress = {};  // after each tensor
  int64_t max_shard_bytes = int64_t{5} << 30;  // a larger model becomes several files
};

// The bf16 values of one tensor; out has rows * columns.
void hash_tensor(const TensorSpec& spec, const ModelConfig& config, uint64_t seed,
                 std::span<uint16_t> out);

// Writes a Hugging Face directory: config.json (a copy), model.safetensors or shards with their
// index, and make_model.json, which says what was made. The same arguments give the same bytes, and
// may be run again over their own output. invalid: the directory holds anything else.
Status make_model(const std::string& config_path, const std::string& out_directory,
                  const HashModelOptions& options);

}  // namespace exact
