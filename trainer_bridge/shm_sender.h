// shm_sender.h owns the trainer's end of the transport shm: tensors of host memory, copied into the
// two halves of the worker's segment in turn.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "ipc/weight_shm.h"
#include "trainer_bridge/publish_plan.h"
#include "trainer_bridge/weight_sender.h"

namespace exact::bridge {

class ShmSender final : public WeightSender {
 public:
  // `tensors` must outlive the sender.
  explicit ShmSender(std::span<const NamedTensor> tensors) : tensors_(tensors) {}

  Status prepare(ipc::UpdateBegin& begin) override;
  // And the errors of WeightSegmentWriter::open.
  Status open(const ipc::UpdateReady& ready) override;
  uint64_t bucket_count() const override { return plan_->bucket_count(); }
  uint64_t payload_bytes(uint64_t index) const override { return plan_->payload_bytes(index); }
  Status send(uint64_t index) override;

 private:
  std::span<const NamedTensor> tensors_;
  std::optional<PublishPlan> plan_;
  std::unique_ptr<ipc::WeightSegmentWriter> segment_;
};

}  // namespace exact::bridge
