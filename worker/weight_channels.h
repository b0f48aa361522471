// weight_channels.h owns the list of transports that a worker offers for weights, and how to make
// the worker's end of each. shm is always there.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/bucket_plan.h"
#include "ipc/weight_channel.h"
#include "ipc/weight_messages.h"
#include "kernels/base/result.h"

namespace exact::worker {

// What a channel must know of its update, beside UpdateBegin.
struct ChannelPlan {
  uint64_t session = 0;
  ipc::BucketPlan buckets;
  std::vector<uint64_t> tensor_bytes;  // in the manifest's order
};

using MakeChannel = std::function<Result<std::unique_ptr<ipc::WeightChannel>>(
    const ipc::UpdateBegin&, const ChannelPlan&)>;

std::string_view transport_name(ipc::WeightTransport transport);

class WeightChannels {
 public:
  // device_uuid: of the worker's GPU; empty: none.
  explicit WeightChannels(const std::string& device_uuid);

  void offer(ipc::WeightTransport transport, MakeChannel make);
  uint32_t offered() const;  // HelloReply.transports
  // unsupported: begin.transport is unknown or not offered; says which are.
  Status check(uint8_t transport) const;
  // begin.transport passed check().
  Result<std::unique_ptr<ipc::WeightChannel>> make(const ipc::UpdateBegin& begin,
                                                   const ChannelPlan& plan) const;

 private:
  static constexpr size_t kTransports = 4;
  std::array<MakeChannel, kTransports> makers_;
};

}  // namespace exact::worker
