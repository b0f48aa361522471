// replayer.h owns making pieces again: an engine for each version of the weights, its requests one
// at a time, in random batches or all at once, and what came of it beside what was recorded.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "replay/compare.h"
#include "replay/plan.h"

namespace exact::replay {

// Where the weights of a digest come from.
class WeightsSource {
 public:
  virtual ~WeightsSource() = default;
  // Fills the slot. not_found: it does not have them; any other code: it can't be used.
  virtual Status load(const Digest128& weights, WeightSlot& slot) = 0;
};

// Hugging Face directories, one version each. The digest of one is known once it was loaded.
class ModelDirectories : public WeightsSource {
 public:
  explicit ModelDirectories(std::vector<std::string> directories);
  Status load(const Digest128& weights, WeightSlot& slot) override;

 private:
  std::vector<std::string> directories_;
  std::vector<std::optional<Digest128>> digests_;
};

enum class Mode : uint8_t {
  alone,    // one request in the engine at a time, no page shared
  batches,  // shuffled, in batches of random sizes, under random limits
  rerun,    // shuffled, all of a version's at once, under random limits
};
std::string_view mode_name(Mode mode);

// Was it the arithmetic or the sampling? The recorded ids are forced: log-probabilities that are
// equal then say that the arithmetic agrees.
struct Located {
  bool arithmetic_agrees = false;
  std::optional<Difference> first;  // of raw log-probabilities, where it does not
};

struct Finding {
  uint64_t record_id = 0;
  int32_t sample_index = 0;
  Mode mode = Mode::alone;
  Difference difference;
  std::optional<Located> located;  // empty where forced decoding could not run
};

// "arithmetic", "sampling", or "neighbours": raw log-probabilities differ in this mode, but not when
// the same ids are forced alone, so they depend on what ran beside them. Empty: not located.
std::string_view cause_of(const Finding& finding);

struct Report {
  uint64_t pieces = 0, tokens = 0;  // compared, of one mode
  std::vector<Finding> findings;    // in order of record id
  std::vector<Digest128> missing;   // versions whose weights nobody has
  uint64_t missing_pieces = 0;
  Digest128 recorded_digest, replayed_digest;  // of all outputs, by record id
};

// Makes every piece of the plan again. `progress` hears of tokens made. contract_mismatch: a
// record's session ran other numerics or another config; device and others: of the engine.
Result<Report> run_plan(const Plan& plan, std::span<const RecordedSample> samples, Mode mode,
                        uint64_t seed, const ModelConfig& config, Backend& backend,
                        WeightsSource& source, const std::function<void(int64_t)>& progress);

}  // namespace exact::replay
