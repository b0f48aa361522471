// cuda_ipc_sender.h owns the trainer's end of the transport cuda_ipc: tensors on the worker's own
// GPU, which the worker reads where they lie. Whole tensors in buckets (ipc/tensor_buckets.h).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "ipc/tensor_buckets.h"
#include "ipc/weight_cuda_ipc.h"
#include "trainer_bridge/weight_sender.h"

namespace exact::bridge {

class CudaIpcSender final : public WeightSender {
 public:
  // `tensors`, all on the current GPU, must outlive the sender.
  explicit CudaIpcSender(std::span<const NamedTensor> tensors) : tensors_(tensors) {}

  // And the errors of CudaExport::create.
  Status prepare(ipc::UpdateBegin& begin) override;
  Status open(const ipc::UpdateReady& ready) override;
  uint64_t bucket_count() const override { return buckets_.size(); }
  uint64_t payload_bytes(uint64_t index) const override;
  Status send(uint64_t) override { return {}; }  // it is there

 private:
  std::span<const NamedTensor> tensors_;
  std::unique_ptr<ipc::CudaExport> export_;
  std::vector<ipc::TensorRange> buckets_;
};

}  // namespace exact::bridge
