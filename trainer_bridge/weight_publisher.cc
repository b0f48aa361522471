#include "trainer_bridge/weight_publisher.h"

#include <array>
#include <optional>
#include <utility>

#include "ipc/weight_shm.h"
#include "trainer_bridge/publish_plan.h"

namespace exact::bridge {
namespace {

using std::chrono::steady_clock;

std::chrono::microseconds since(steady_clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - begin);
}

// The two halves of the segment. A half is written only after the worker has drained it, so that
// bucket i + 1 is copied in while the worker reads bucket i.
class BucketSender {
 public:
  BucketSender(Client& client, const ipc::UpdateReady& ready, const PublishPlan& plan,
               ipc::WeightSegmentWriter& segment)
      : client_(client), ready_(ready), plan_(plan), segment_(segment) {}

  Status send_all(const PublishOptions& options) {
    for (uint64_t index = 0; index < plan_.bucket_count(); index++) {
      EXACT_RETURN_IF_ERROR(drain(index % 2, options));
      const uint64_t bytes = plan_.payload_bytes(index);
      plan_.fill(index, segment_.begin_bucket(index));
      segment_.finish_bucket(index, bytes);
      EXACT_ASSIGN(const uint64_t request, client_.send_bucket(ready_.session, index));
      halves_[index % 2] = Sent{request, index, bytes};
    }
    EXACT_RETURN_IF_ERROR(drain(plan_.bucket_count() % 2, options));
    return drain((plan_.bucket_count() + 1) % 2, options);
  }

 private:
  struct Sent {
    uint64_t request_id;
    uint64_t index;
    uint64_t bytes;
  };

  Status drain(size_t half, const PublishOptions& options) {
    if (!halves_[half]) return {};
    const Sent sent = *std::exchange(halves_[half], std::nullopt);
    EXACT_ASSIGN(const auto done, client_.wait_bucket(sent.request_id));
    if (done.session != ready_.session || done.index != sent.index) {
      return Status(Code::corrupt, "the worker confirmed bucket " + std::to_string(done.index) +
                                       " where bucket " + std::to_string(sent.index) + " was sent");
    }
    bytes_done_ += sent.bytes;
    if (options.progress) options.progress(bytes_done_, plan_.stream_bytes());
    return {};
  }

  Client& client_;
  const ipc::UpdateReady& ready_;
  const PublishPlan& plan_;
  ipc::WeightSegmentWriter& segment_;
  std::array<std::optional<Sent>, 2> halves_;
  uint64_t bytes_done_ = 0;
};

Status transfer(Client& client, const ipc::UpdateReady& ready, std::span<const NamedTensor> tensors,
                const PublishOptions& options) {
  EXACT_ASSIGN(const PublishPlan plan, PublishPlan::make(tensors, ready.bucket_bytes));
  EXACT_ASSIGN(auto segment, ipc::WeightSegmentWriter::open(ready.segment_name, ready.segment_bytes,
                                                            ready.session, ready.bucket_bytes));
  return BucketSender(client, ready, plan, *segment).send_all(options);
}

}  // namespace

Result<PublishReport> publish(Client& client, std::span<const NamedTensor> tensors,
                              const PublishOptions& options) {
  PublishReport report;
  auto begin = steady_clock::now();
  ipc::UpdateBegin manifest;
  EXACT_ASSIGN(manifest.tensors, make_manifest(tensors));
  manifest.weight_version = options.version;
  manifest.contract_id = client.worker().contract_id;
  manifest.policy = options.policy;
  manifest.bucket_bytes = options.bucket_bytes;
  for (const NamedTensor& tensor : tensors) report.bytes += tensor.bytes.size();
  report.digest_time = since(begin);

  begin = steady_clock::now();
  EXACT_ASSIGN(const ipc::UpdateReady ready, client.update_begin(manifest));
  if (const Status sent = transfer(client, ready, tensors, options); !sent) {
    // The worker may have given the update up by itself; the first error is the one that matters.
    (void)client.update_abort(ready.session);
    return sent;
  }
  report.transfer_time = since(begin);

  begin = steady_clock::now();
  auto committed = client.update_commit(ready.session);
  if (!committed) {
    (void)client.update_abort(ready.session);
    if (committed.status().code() != Code::timeout) return committed.status();
    return Status(Code::timeout, "version " + std::to_string(options.version) +
                                     " was sent whole but is not live yet; it may still become so "
                                     "(under policy wait, once running requests are done): ask "
                                     "status(), then publish the next version");
  }
  report.commit_time = since(begin);
  report.version = committed->weight_version;
  report.weights_digest = committed->weights_digest;
  if (report.version != options.version) {
    return Status(Code::corrupt, "version " + std::to_string(options.version) +
                                     " was published, but the worker committed version " +
                                     std::to_string(report.version));
  }
  return report;
}

}  // namespace exact::bridge
