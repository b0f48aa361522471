// model_fixture.h owns what tests need to have a model: its weights, rebuilt from their hash.
#pragma once

#include <memory>
#include <string>

#include "engine/config.h"
#include "engine/weights.h"
#include "kernels/backend.h"

namespace exact {

// The whole file; a test failure when it can't be read.
std::string read_text(const std::string& path);

// A complete slot with the hash-initialised weights of `seed`.
std::unique_ptr<WeightSlot> hash_slot(const ModelConfig& config, Backend& backend, uint64_t seed);

}  // namespace exact
