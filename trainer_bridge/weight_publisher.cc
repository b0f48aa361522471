#include "trainer_bridge/weight_publisher.h"

#include <array>
#include <memory>
#include <optional>
#include <utility>

#include "ipc/weight_channel.h"
#include "trainer_bridge/weight_sender.h"

namespace exact::bridge {
namespace {

using std::chrono::steady_clock;

std::chrono::microseconds since(steady_clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - begin);
}

// Buckets in turn: while the worker takes bucket i, bucket i + 1 is sent.
class BucketLoop {
 public:
  BucketLoop(Client& client, uint64_t session, WeightSender& sender, const PushOptions& options,
             uint64_t bytes_total)
      : client_(client),
        session_(session),
        sender_(sender),
        options_(options),
        bytes_total_(bytes_total) {}

  Status send_all() {
    for (uint64_t index = 0; index < sender_.bucket_count(); index++) {
      std::optional<Sent>& place = sent_[index % sent_.size()];
      EXACT_RETURN_IF_ERROR(wait_for(place));
      EXACT_RETURN_IF_ERROR(sender_.send(index));
      EXACT_ASSIGN(const uint64_t request, client_.send_bucket(session_, index));
      place = Sent{request, index};
    }
    return {};
  }
  Status wait_for_rest() {
    const uint64_t count = sender_.bucket_count();
    for (uint64_t i = 0; i < sent_.size(); i++) {
      EXACT_RETURN_IF_ERROR(wait_for(sent_[(count + i) % sent_.size()]));
    }
    return {};
  }

 private:
  struct Sent {
    uint64_t request_id;
    uint64_t index;
  };

  Status wait_for(std::optional<Sent>& place) {
    if (!place) return {};
    const Sent sent = *std::exchange(place, std::nullopt);
    EXACT_ASSIGN(const auto done, client_.wait_bucket(sent.request_id));
    if (done.session != session_ || done.index != sent.index) {
      return Status(Code::corrupt, "the worker confirmed bucket " + std::to_string(done.index) +
                                       " where bucket " + std::to_string(sent.index) + " was sent");
    }
    bytes_done_ += sender_.payload_bytes(sent.index);
    if (options_.progress) options_.progress(bytes_done_, bytes_total_);
    return {};
  }

  Client& client_;
  uint64_t session_;
  WeightSender& sender_;
  const PushOptions& options_;
  uint64_t bytes_total_;
  uint64_t bytes_done_ = 0;
  std::array<std::optional<Sent>, ipc::kBucketsInFlight> sent_;
};

Status transfer(Client& client, const ipc::UpdateReady& ready, WeightSender& sender,
                const PushOptions& options, PushReport& report) {
  const auto begin = steady_clock::now();
  BucketLoop loop(client, ready.session, sender, options, report.bytes);
  EXACT_RETURN_IF_ERROR(loop.send_all());
  report.transfer_time = since(begin);
  const auto sent = steady_clock::now();
  EXACT_RETURN_IF_ERROR(loop.wait_for_rest());
  report.verify_time = since(sent);
  return {};
}

Status commit(Client& client, uint64_t session, const PushOptions& options, PushReport& report) {
  const auto begin = steady_clock::now();
  auto committed = client.update_commit(session);
  if (!committed) {
    if (committed.status().code() != Code::timeout) return committed.status();
    return Status(Code::timeout, "version " + std::to_string(options.version) +
                                     " was sent whole but is not live yet; it may still become so "
                                     "(under policy wait, once running requests are done): ask "
                                     "status(), then publish the next version");
  }
  report.commit_time = since(begin);
  report.version = committed->weight_version;
  report.weights_digest = committed->weights_digest;
  return {};
}

Status move_and_commit(Client& client, const ipc::UpdateReady& ready, WeightSender& sender,
                       const PushOptions& options, PushReport& report) {
  EXACT_RETURN_IF_ERROR(transfer(client, ready, sender, options, report));
  return commit(client, ready.session, options, report);
}

}  // namespace

Result<PushReport> push(Client& client, std::span<const NamedTensor> tensors,
                        const PushOptions& options) {
  EXACT_ASSIGN(const auto sender, choose_sender(client.worker(), tensors, options));
  PushReport report;
  auto begin = steady_clock::now();
  ipc::UpdateBegin message;
  message.weight_version = options.version;
  message.base_version = options.base_version;
  message.contract_id = client.worker().contract_id;
  message.weights_digest = options.weights_digest;
  message.policy = options.policy;
  message.in_place = client.worker().in_place_only;
  message.bucket_bytes = options.bucket_bytes;
  EXACT_RETURN_IF_ERROR(sender->prepare(message));
  for (const NamedTensor& tensor : tensors) report.bytes += tensor.bytes.size();
  report.transport = static_cast<ipc::WeightTransport>(message.transport);
  report.digest_time = since(begin);

  begin = steady_clock::now();
  EXACT_ASSIGN(const ipc::UpdateReady ready, client.update_begin(message));
  Status status = sender->open(ready);
  report.begin_time = since(begin);
  if (status.is_ok()) status = move_and_commit(client, ready, *sender, options, report);
  if (!status.is_ok()) {
    // The worker may have given the update up by itself; the first error is the one that matters.
    (void)client.update_abort(ready.session);
    return status;
  }
  if (report.version != options.version) {
    return Status(Code::corrupt, "version " + std::to_string(options.version) +
                                     " was published, but the worker committed version " +
                                     std::to_string(report.version));
  }
  return report;
}

}  // namespace exact::bridge
