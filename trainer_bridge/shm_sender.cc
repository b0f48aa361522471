#include "trainer_bridge/shm_sender.h"

namespace exact::bridge {

Status ShmSender::prepare(ipc::UpdateBegin& begin) {
  begin.transport = static_cast<uint8_t>(ipc::WeightTransport::shm);
  EXACT_ASSIGN(begin.tensors, make_manifest(tensors_));
  return {};
}

Status ShmSender::open(const ipc::UpdateReady& ready) {
  EXACT_ASSIGN(plan_, PublishPlan::make(tensors_, ready.bucket_bytes));
  EXACT_ASSIGN(segment_, ipc::WeightSegmentWriter::open(ready.segment_name, ready.segment_bytes,
                                                        ready.session, ready.bucket_bytes));
  return {};
}

Status ShmSender::send(uint64_t index) {
  plan_->fill(index, segment_->begin_bucket(index));
  segment_->finish_bucket(index, plan_->payload_bytes(index));
  return {};
}

}  // namespace exact::bridge
