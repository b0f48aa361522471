// weight_sender.h owns the trainer's end of a weight update's transport: how bytes of tensors come
// to where the worker takes them. push() calls it in the order below and says everything that goes
// by message; ipc/weight_channel.h is the other end.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "ipc/messages.h"
#include "kernels/base/result.h"
#include "trainer_bridge/weight_publisher.h"

namespace exact::bridge {

class WeightSender {
 public:
  virtual ~WeightSender() = default;

  // Fills in the transport, its own fields, and the manifest with the tensors' digests. invalid:
  // names a tensor that can't be sent.
  virtual Status prepare(ipc::UpdateBegin& begin) = 0;
  // The worker is ready. The plan of the buckets is made here: the worker may have given less than
  // was asked for.
  virtual Status open(const ipc::UpdateReady& ready) = 0;
  virtual uint64_t bucket_count() const = 0;
  virtual uint64_t payload_bytes(uint64_t index) const = 0;
  // Puts bucket `index` where the worker finds it, or on its way there; UpdateBucket is sent after
  // it. Called in order, and only once the worker has answered bucket index - kBucketsInFlight.
  virtual Status send(uint64_t index) = 0;
};

// The sender of options.transport, or of the best transport for these tensors that the worker
// offers; never disk. The tensors must outlive it. unsupported: the worker does not offer what is
// asked for, or nothing can send these tensors to it.
Result<std::unique_ptr<WeightSender>> choose_sender(const ipc::HelloReply& worker,
                                                    std::span<const NamedTensor> tensors,
                                                    const PushOptions& options);

}  // namespace exact::bridge
