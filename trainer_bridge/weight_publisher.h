// weight_publisher.h owns the trainer's half of a weight update: plan first, move bytes second.
// The update is atomic in the worker: after any error here the worker serves the old version.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/digest.h"
#include "kernels/base/result.h"
#include "trainer_bridge/client.h"

namespace exact::bridge {

// One tensor of the trainer: Hugging Face name and shape, bf16, contiguous host memory.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

struct PublishOptions {
  uint64_t version = 0;  // above the worker's live version
  uint8_t policy = 0;    // exact::UpdatePolicy: 0 wait, 1 recompute, 2 abort
  uint64_t bucket_bytes = 64ull << 20;
  std::function<void(uint64_t bytes_done, uint64_t bytes_total)> progress;  // may be empty
};

struct PublishReport {
  uint64_t version = 0;
  std::string weights_digest;
  uint64_t bytes = 0;
  std::chrono::microseconds digest_time{}, transfer_time{}, commit_time{};
};

Result<PublishReport> publish(Client& client, std::span<const NamedTensor> tensors,
                              const PublishOptions& options);

}  // namespace exact::bridge
