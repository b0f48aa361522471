#include "worker/weight_channels.h"

#include <utility>

#include "ipc/shm_channel.h"
#include "ipc/weight_cuda_ipc.h"
#include "ipc/weight_nccl.h"
#include "kernels/base/check.h"

namespace exact::worker {

std::string_view transport_name(ipc::WeightTransport transport) {
  switch (transport) {
    case ipc::WeightTransport::shm:
      return "shm";
    case ipc::WeightTransport::cuda_ipc:
      return "cuda_ipc";
    case ipc::WeightTransport::nccl:
      return "nccl";
    case ipc::WeightTransport::disk:
      return "disk";
  }
  return "unknown";
}

// A transport that needs a GPU is offered only where there is one.
WeightChannels::WeightChannels(const std::string& device_uuid) {
  offer(ipc::WeightTransport::shm, [](const ipc::UpdateBegin&, const ChannelPlan& plan) {
    return ipc::ShmChannel::create(plan.session, plan.buckets, plan.tensor_bytes);
  });
  if (device_uuid.empty()) return;
  offer(ipc::WeightTransport::cuda_ipc,
        [device_uuid](const ipc::UpdateBegin& begin, const ChannelPlan& plan) {
          return ipc::open_cuda_ipc(begin.cuda, plan.tensor_bytes, plan.buckets.bucket_bytes,
                                    device_uuid);
        });
  offer(ipc::WeightTransport::nccl, [](const ipc::UpdateBegin& begin, const ChannelPlan& plan) {
    return ipc::open_nccl(begin.nccl, plan.tensor_bytes, plan.buckets.bucket_bytes);
  });
}

void WeightChannels::offer(ipc::WeightTransport transport, MakeChannel make) {
  makers_[static_cast<size_t>(transport)] = std::move(make);
}

uint32_t WeightChannels::offered() const {
  uint32_t bits = 0;
  for (size_t i = 0; i < kTransports; i++) {
    if (makers_[i]) bits |= uint32_t{1} << i;
  }
  return bits;
}

Status WeightChannels::check(uint8_t transport) const {
  if (transport < kTransports && makers_[transport]) return {};
  std::string offers;
  for (size_t i = 0; i < kTransports; i++) {
    if (!makers_[i]) continue;
    offers += (offers.empty() ? "" : ", ");
    offers += std::string(transport_name(static_cast<ipc::WeightTransport>(i))) + " (" +
              std::to_string(i) + ")";
  }
  return Status(Code::unsupported,
                "transport is " + std::to_string(transport) + " (" +
                    std::string(transport_name(static_cast<ipc::WeightTransport>(transport))) +
                    "); this worker offers " + offers);
}

Result<std::unique_ptr<ipc::WeightChannel>> WeightChannels::make(const ipc::UpdateBegin& begin,
                                                                 const ChannelPlan& plan) const {
  EXACT_CHECK(check(begin.transport).is_ok(), "a transport that was not checked");
  return makers_[begin.transport](begin, plan);
}

}  // namespace exact::worker
