// journal_maker.h owns journals for tests of replaying: random requests of every kind run through
// an engine under weights that change while they run, and written down as a worker writes them.
// Version v has the hash-initialised weights of seed v, so nobody has to keep them.
#pragma once

#include <cstdint>
#include <string>

#include "engine/config.h"
#include "kernels/backend.h"
#include "kernels/base/result.h"
#include "replay/replayer.h"

namespace exact {

struct MakerOptions {
  std::string directory;
  uint64_t seed = 1;
  int32_t requests = 100;
  int32_t versions = 4;  // by turns under recompute, wait and abort
};

// The journal is a function of options and config, on every backend, but for its times.
Status make_test_journal(const MakerOptions& options, const ModelConfig& config, Backend& backend);

// Weights of seeds 1 .. versions.
class HashWeights : public replay::WeightsSource {
 public:
  HashWeights(const ModelConfig& config, uint64_t versions)
      : config_(config), versions_(versions) {}
  Status load(const Digest128& weights, WeightSlot& slot) override;

 private:
  ModelConfig config_;
  uint64_t versions_;
};

// Fills a slot, begun, with the weights of a seed, and completes it.
Status fill_by_hash(const ModelConfig& config, uint64_t seed, WeightSlot& slot);

}  // namespace exact
