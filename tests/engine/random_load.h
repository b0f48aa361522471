// random_load.h owns what the tests of batch invariance throw at an engine: tiny models of every
// kind, limits so tight that sequences are preempted, and requests of every shape.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kernels/make_backend.h"
#include "tests/support/random_data.h"

namespace exact {

// llama, qwen2 or qwen3; head width 64 or 128; tied or not; one to three layers.
ModelConfig random_config(RandomData& random);
// Few pages, few rows, few places.
EngineLimits tight_limits(RandomData& random);
// The same context, and room for any one request at once.
EngineLimits roomy_limits(const EngineLimits& tight);

GenerateRequest random_generate(RandomData& random, const ModelConfig& config,
                                const EngineLimits& limits, RequestId id);
ScoreRequest random_score(RandomData& random, const ModelConfig& config, const EngineLimits& limits,
                          RequestId id);

// An instruction set of this machine, one to three threads; where there is a Hopper GPU, it in half
// of the cases, with recorded steps or without.
BackendOptions random_backend(RandomData& random);

// An engine with its own backend, and weights that are the hash of `weight_seed`.
class LoadedEngine {
 public:
  LoadedEngine(const ModelConfig& config, const BackendOptions& backend, const EngineLimits& limits,
               uint64_t weight_seed);

  Engine& operator*() { return *engine_; }
  Engine* operator->() { return engine_.get(); }
  // Steps until all is done; results are added to `all`.
  StepReport run_all();
  // Steps once, and adds what came to `all`. False when the step failed.
  bool step_into(StepReport& all);
  // Fills an update with the hash of `weight_seed` and commits it.
  void update(WeightVersion version, uint64_t weight_seed, UpdatePolicy policy);

 private:
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Engine> engine_;
};

// For a failure's message.
std::string describe(const ModelConfig& config);
std::string describe(const EngineLimits& limits);
std::string describe(const GenerateRequest& request);

}  // namespace exact
