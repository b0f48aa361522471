// shm_channel.h owns the worker's end of the transport shm: buckets out of a WeightSegment.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "ipc/bucket_plan.h"
#include "ipc/weight_channel.h"
#include "ipc/weight_shm.h"

namespace exact::ipc {

class ShmChannel final : public WeightChannel {
 public:
  // tensor_bytes: of the manifest's tensors, in its order; the plan is of those. Errors: those of
  // WeightSegment::create.
  static Result<std::unique_ptr<WeightChannel>> create(uint64_t session, const BucketPlan& plan,
                                                       std::vector<uint64_t> tensor_bytes);

  void describe(UpdateReady& ready) const override;
  uint64_t bucket_count() const override { return plan_.bucket_count(); }
  Status expect(uint64_t index) override;
  // corrupt: the segment does not hold the bucket that was announced.
  Result<std::optional<BucketPieces>> poll() override;
  void release() override;

 private:
  ShmChannel(std::unique_ptr<WeightSegment> segment, const BucketPlan& plan,
             std::vector<uint64_t> tensor_bytes);

  std::unique_ptr<WeightSegment> segment_;
  BucketPlan plan_;
  std::vector<uint64_t> tensor_bytes_;
  std::deque<uint64_t> expected_;
};

}  // namespace exact::ipc
