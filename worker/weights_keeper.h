// weights_keeper.h owns how a worker's live weights come into a weights store while it serves: they
// are read back from the backend by the loop, a few tensors a turn, and written by a thread of the
// keeper's own. What the store has already is neither read nor written.
//
// The weights must stay where they are until they are stored: while is_busy(), no update may begin.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/weights_store.h"

namespace exact::worker {

class WeightsKeeper {
 public:
  // `model_directory` has the config.json that is kept beside the weights.
  WeightsKeeper(WeightsStore store, ModelConfig config, std::string model_directory);
  // A version that is not whole yet is not stored.
  ~WeightsKeeper();
  WeightsKeeper(const WeightsKeeper&) = delete;
  WeightsKeeper& operator=(const WeightsKeeper&) = delete;

  // Stores now, and returns when it is done: for the start, before anybody waits.
  Status store_now(WeightSlot& live, uint64_t version);

  // ---- of one thread, the loop's
  // Begins to store the live weights. exhausted: an earlier version is not stored yet.
  Status begin(WeightSlot& live, uint64_t version);
  // Reads what there is room for: one tensor, or as many small ones as make 8 MiB.
  void turn();
  bool is_busy() const;
  bool wants_turn() const;  // turn() would read something

  struct Outcome {
    uint64_t version = 0;
    Digest128 weights_digest;
    uint64_t bytes_written = 0;
    Status status;
  };
  std::optional<Outcome> take_outcome();  // once for each begin()
  const std::string& directory() const { return store_.directory(); }

 private:
  enum class Phase : uint8_t { idle, preparing, reading, writing };
  bool has_turn() const;  // the mutex is held
  void run();
  Status store(uint64_t& bytes_written);
  Result<std::vector<std::byte>> next_tensor();

  const WeightsStore store_;
  const ModelConfig config_;
  const std::string model_directory_;
  WeightSlot* live_ = nullptr;  // of the loop

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Phase phase_ = Phase::idle;  // guarded, as are those below
  bool ending_ = false;
  StoredModel model_;  // in phase preparing and later: the thread's
  std::vector<size_t> missing_;
  size_t next_ = 0;  // of missing_, to be read
  std::deque<std::vector<std::byte>> queue_;
  uint64_t queued_bytes_ = 0;
  Status read_failure_;
  std::optional<Outcome> outcome_;
  std::thread thread_;
};

}  // namespace exact::worker
