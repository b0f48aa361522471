#include "worker/weights_keeper.h"

#include <chrono>

namespace exact::worker {
namespace {

constexpr uint64_t kTurnBytes = 8u << 20;
constexpr uint64_t kQueueBytes = 256u << 20;  // that wait for the disk, or one tensor

uint64_t now_us() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                   std::chrono::system_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

WeightsKeeper::WeightsKeeper(WeightsStore store, ModelConfig config, std::string model_directory)
    : store_(std::move(store)),
      config_(std::move(config)),
      model_directory_(std::move(model_directory)),
      thread_([this] { run(); }) {}

WeightsKeeper::~WeightsKeeper() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

Status WeightsKeeper::store_now(WeightSlot& live, uint64_t version) {
  EXACT_CHECK(!is_busy(), "the start comes before any update");
  return store_weights(store_, live, config_, model_directory_, version, now_us());
}

Status WeightsKeeper::begin(WeightSlot& live, uint64_t version) {
  const std::lock_guard lock(mutex_);
  if (phase_ != Phase::idle) {
    return {Code::exhausted,
            "version " + std::to_string(model_.weight_version) + " is not stored yet"};
  }
  live_ = &live;
  model_ = describe_weights(live, config_);
  model_.weight_version = version;
  model_.stored_us = now_us();
  missing_.clear();
  queue_.clear();
  next_ = 0;
  queued_bytes_ = 0;
  read_failure_ = {};
  outcome_.reset();
  phase_ = Phase::preparing;
  wake_.notify_all();
  return {};
}

bool WeightsKeeper::is_busy() const {
  const std::lock_guard lock(mutex_);
  return phase_ != Phase::idle;
}

bool WeightsKeeper::has_turn() const {
  return phase_ == Phase::reading && read_failure_.is_ok() && next_ < missing_.size() &&
         (queue_.empty() || queued_bytes_ + model_.tensors[missing_[next_]].bytes <= kQueueBytes);
}

bool WeightsKeeper::wants_turn() const {
  const std::lock_guard lock(mutex_);
  return has_turn();
}

void WeightsKeeper::turn() {
  uint64_t turn_bytes = 0;
  while (turn_bytes < kTurnBytes) {
    size_t index = 0;
    uint64_t bytes = 0;
    {
      const std::lock_guard lock(mutex_);
      if (!has_turn()) return;
      index = missing_[next_];
      bytes = model_.tensors[index].bytes;
      if (turn_bytes > 0 && turn_bytes + bytes > kTurnBytes) return;
    }
    std::vector<std::byte> data(bytes);
    const Status read = live_->read_tensor(index, data);
    turn_bytes += bytes;
    {
      const std::lock_guard lock(mutex_);
      if (phase_ != Phase::reading) return;  // the thread gave up meanwhile
      if (read.is_ok()) {
        queue_.push_back(std::move(data));
        queued_bytes_ += bytes;
        next_++;
      } else {
        read_failure_ = read;
      }
    }
    wake_.notify_all();
  }
}

std::optional<WeightsKeeper::Outcome> WeightsKeeper::take_outcome() {
  const std::lock_guard lock(mutex_);
  return std::exchange(outcome_, std::nullopt);
}

void WeightsKeeper::run() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return ending_ || phase_ == Phase::preparing; });
      if (ending_) return;
    }
    uint64_t bytes_written = 0;
    const Status status = store(bytes_written);
    const std::lock_guard lock(mutex_);
    outcome_ = Outcome{model_.weight_version, model_.weights_digest, bytes_written, status};
    queue_.clear();
    phase_ = Phase::idle;
  }
}

// The bytes of the next missing tensor, once the loop has read them.
Result<std::vector<std::byte>> WeightsKeeper::next_tensor() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] { return ending_ || !queue_.empty() || !read_failure_.is_ok(); });
  if (ending_) return Status(Code::cancelled, "the worker ends");
  if (queue_.empty()) return read_failure_;
  std::vector<std::byte> bytes = std::move(queue_.front());
  queue_.pop_front();
  queued_bytes_ -= bytes.size();
  return bytes;
}

Status WeightsKeeper::store(uint64_t& bytes_written) {
  EXACT_ASSIGN(WeightsWriter writer, WeightsWriter::begin(store_));
  EXACT_RETURN_IF_ERROR(writer.put_config(model_directory_, model_));
  std::vector<size_t> missing;
  for (size_t i = 0; i < model_.tensors.size(); i++) {
    if (!writer.has(model_.tensors[i])) missing.push_back(i);
  }
  {
    const std::lock_guard lock(mutex_);
    missing_ = missing;
    phase_ = Phase::reading;
  }
  for (const size_t index : missing) {
    EXACT_ASSIGN(const std::vector<std::byte> bytes, next_tensor());
    EXACT_RETURN_IF_ERROR(writer.put(model_.tensors[index], bytes));
    bytes_written = writer.bytes_written();
  }
  {
    const std::lock_guard lock(mutex_);
    phase_ = Phase::writing;
  }
  return writer.finish(model_);
}

}  // namespace exact::worker
