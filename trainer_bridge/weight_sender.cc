#include "trainer_bridge/weight_sender.h"

#include <algorithm>
#include <string>

#include "trainer_bridge/cuda_ipc_sender.h"
#include "trainer_bridge/shm_sender.h"

namespace exact::bridge {
namespace {

Status check_offered(const ipc::HelloReply& worker, ipc::WeightTransport transport) {
  if (transport == ipc::WeightTransport::shm) return {};  // every worker has it
  const auto bit = static_cast<uint32_t>(transport);
  if (bit < 32 && (worker.transports >> bit & 1) != 0) return {};
  return Status(Code::unsupported, "the worker does not offer transport " + std::to_string(bit) +
                                       ": leave transport empty, or use another worker");
}

}  // namespace

Result<std::unique_ptr<WeightSender>> choose_sender(const ipc::HelloReply& worker,
                                                    std::span<const NamedTensor> tensors,
                                                    const PushOptions& options) {
  const bool all_on_device =
      !tensors.empty() && std::ranges::all_of(tensors, &NamedTensor::on_device);
  const ipc::WeightTransport transport = options.transport.value_or(
      all_on_device ? ipc::WeightTransport::cuda_ipc : ipc::WeightTransport::shm);
  EXACT_RETURN_IF_ERROR(check_offered(worker, transport));
  if (transport == ipc::WeightTransport::cuda_ipc) {
    if (all_on_device) {
      return std::unique_ptr<WeightSender>(std::make_unique<CudaIpcSender>(tensors));
    }
    return Status(Code::unsupported,
                  "transport cuda_ipc reads tensors on the GPU, and some lie on the host: move all "
                  "of them to the worker's GPU, or leave transport empty");
  }
  if (transport != ipc::WeightTransport::shm) {
    return Status(Code::unsupported, "this trainer can't send by transport " +
                                         std::to_string(static_cast<int>(transport)) +
                                         ": leave transport empty");
  }
  const auto on_device = std::ranges::find_if(tensors, &NamedTensor::on_device);
  if (on_device != tensors.end()) {
    return Status(Code::unsupported, "tensor '" + on_device->name +
                                         "' lies on a GPU, and shared memory takes bytes of the "
                                         "host: copy it there first");
  }
  return std::unique_ptr<WeightSender>(std::make_unique<ShmSender>(tensors));
}

}  // namespace exact::bridge
