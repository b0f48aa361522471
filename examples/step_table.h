// step_table.h owns what trainer_loop prints: one line a step while it runs, a table and a plain
// statement at the end.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace exact::examples {

struct StepRow {
  uint64_t version = 0;
  double reward = 0, best_reward = 0;
  bool kept = false;
  uint64_t checked = 0, mismatches = 0;           // log-probabilities
  uint64_t tokens = 0;                            // of the rewarded groups
  uint64_t straddled_old = 0, straddled_new = 0;  // of the group that was in flight at the push
  double rollout_seconds = 0, publish_seconds = 0;
  std::string weights_digest;
  uint64_t logits_hash = 0;  // of the trainer's last row of logits

  double tokens_per_second() const {
    return rollout_seconds > 0 ? static_cast<double>(tokens) / rollout_seconds : 0;
  }
};

inline void print_step(size_t index, size_t count, const StepRow& row) {
  fmt::print(
      "step {}/{}  reward {:.4f} ({})  checked {}  mismatches {}  {:.0f} tokens/s  push {:.0f} ms  "
      "version {}  weights {}  logits {:016x}\n",
      index + 1, count, row.reward, row.kept ? "kept" : "dropped", row.checked, row.mismatches,
      row.tokens_per_second(), row.publish_seconds * 1e3, row.version,
      row.weights_digest.substr(0, 8), row.logits_hash);
  std::fflush(stdout);
}

inline void print_table(const std::vector<StepRow>& rows) {
  fmt::print("\n{:>7}  {:>7}  {:>7}  {:>8}  {:>10}  {:>9}  {:>18}  {:>8}\n", "version", "reward",
             "best", "checked", "mismatches", "tokens/s", "in flight: old/new", "weights");
  for (const StepRow& row : rows) {
    fmt::print("{:>7}  {:>7.4f}  {:>7.4f}  {:>8}  {:>10}  {:>9.0f}  {:>18}  {:>8}\n", row.version,
               row.reward, row.best_reward, row.checked, row.mismatches, row.tokens_per_second(),
               fmt::format("{} / {}", row.straddled_old, row.straddled_new),
               row.weights_digest.substr(0, 8));
  }
}

// True when no bit differed and something was compared.
inline bool print_statement(const std::vector<StepRow>& rows) {
  uint64_t checked = 0, mismatches = 0, crossed = 0;
  for (const StepRow& row : rows) {
    checked += row.checked;
    mismatches += row.mismatches;
    crossed += row.straddled_old + row.straddled_new;
  }
  fmt::print(
      "\n{} weight versions published, {} log-probabilities compared with the trainer's own "
      "forward "
      "pass under the version that made each token ({} of them in flight during a push): {} "
      "differ.\n",
      rows.size(), checked, crossed, mismatches);
  if (checked > 0 && mismatches == 0) fmt::print("Every log-probability is equal, bit for bit.\n");
  return checked > 0 && mismatches == 0;
}

}  // namespace exact::examples
