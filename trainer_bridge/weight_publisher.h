// weight_publisher.h owns the trainer's half of a weight update: plan first, move bytes second.
// The update is atomic in the worker: after any error here the worker serves the old version.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ipc/weight_messages.h"
#include "kernels/base/digest.h"
#include "kernels/base/result.h"
#include "trainer_bridge/client.h"

namespace exact::bridge {

// One tensor of the trainer: Hugging Face name and shape, bf16, contiguous memory.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
  bool on_device = false;  // bytes are of a GPU, not to be read here
};

struct PushOptions {
  uint64_t version = 0;  // above the worker's live version
  uint8_t policy = 0;    // exact::UpdatePolicy: 0 wait, 1 recompute, 2 abort, 3 keep
  uint64_t bucket_bytes = 64ull << 20;
  std::function<void(uint64_t bytes_done, uint64_t bytes_total)> progress{};  // may be empty
  std::optional<ipc::WeightTransport> transport{};  // empty: the best that both sides have
  uint64_t base_version = 0;     // 0: the tensors are all; else those that differ from this version
  std::string weights_digest{};  // what the whole model's shall be; empty: not compared
};

struct PushReport {
  uint64_t version = 0;
  std::string weights_digest;
  uint64_t bytes = 0;
  ipc::WeightTransport transport = ipc::WeightTransport::shm;
  // In this order: the manifest's digests; until the worker is ready; until the last bucket is
  // handed over; until the worker has it and every digest is right; until the version is live.
  std::chrono::microseconds digest_time{}, begin_time{}, transfer_time{}, verify_time{},
      commit_time{};
};

// One whole update. Don't write to the tensors before it returns.
Result<PushReport> push(Client& client, std::span<const NamedTensor> tensors,
                        const PushOptions& options);

// The name that push() had when there was one transport.
using PublishOptions = PushOptions;
using PublishReport = PushReport;
inline Result<PublishReport> publish(Client& client, std::span<const NamedTensor> tensors,
                                     const PublishOptions& options) {
  return push(client, tensors, options);
}

}  // namespace exact::bridge
