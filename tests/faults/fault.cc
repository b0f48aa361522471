#include "tests/faults/fault.h"

#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <limits>

#include "ipc/shm_region.h"
#include "tests/faults/trainer_process.h"

namespace exact::fault_tests {
namespace {

using std::chrono::milliseconds;
using worker_tests::RawClient;
using worker_tests::UpdateSteps;
using Random = std::mt19937_64;

uint64_t below(Random& random, uint64_t end) {
  return random() % end;
}

// ---- a process dies or stands still
// A trainer at the point. The worker's patience is short here: a machine too busy for it lets a
// trainer try again.
std::unique_ptr<TrainerProcess> trainer_at(FaultyWorker& worker, uint64_t version, uint64_t point) {
  constexpr int kAttempts = 10;
  for (int i = 0; i < kAttempts; i++) {
    auto trainer = std::make_unique<TrainerProcess>(worker.endpoint(), version, point);
    if (trainer->reached()) return trainer;
  }
  ADD_FAILURE() << "no trainer reached its point";
  return nullptr;
}

void kill_trainer(FaultyWorker& worker, uint64_t point, Random&) {
  const uint64_t old = worker.live_version();
  const auto started = trainer_at(worker, old + 1, point);
  if (started == nullptr) return;
  TrainerProcess& trainer = *started;
  trainer.kill();
  std::vector<uint64_t> expected{old};
  if (is_commit(point, worker.bucket_count())) expected.push_back(old + 1);
  worker.expect_whole(expected, trainer.segment_name());
}

// The worker gives the update up, and what the trainer wants when it wakes is refused.
void stop_trainer(FaultyWorker& worker, uint64_t point, Random&) {
  const uint64_t old = worker.live_version();
  const auto started = trainer_at(worker, old + 1, point);
  if (started == nullptr) return;
  TrainerProcess& trainer = *started;
  trainer.signal(SIGSTOP);
  const bool posted = is_commit(point, worker.bucket_count());
  worker.expect_whole({posted ? old + 1 : old}, trainer.segment_name());
  trainer.signal(SIGCONT);
  const std::string end = trainer.go_on();
  EXPECT_EQ(end == "committed", posted) << end;
  worker.expect_whole({posted ? old + 1 : old}, trainer.segment_name());
}

void kill_worker(FaultyWorker& worker, uint64_t point, Random&) {
  const uint64_t old = worker.live_version();
  auto steps = worker.update(old + 1);
  const auto reached = drive_to(steps, point);
  ASSERT_TRUE(reached.is_ok()) << reached.status().to_string();
  worker.kill_and_restart();
  worker.expect_whole({1}, steps.ready.segment_name);
}

void stop_worker(FaultyWorker& worker, uint64_t point, Random&) {
  const uint64_t old = worker.live_version();
  auto steps = worker.update(old + 1);
  const auto reached = drive_to(steps, point);
  ASSERT_TRUE(reached.is_ok()) << reached.status().to_string();
  auto other = bridge_tests::connect(worker.endpoint(), milliseconds(200));
  if (other == nullptr) return;
  worker.signal(SIGSTOP);
  const auto status = other->status();
  worker.signal(SIGCONT);
  EXPECT_EQ(status.status().code(), Code::timeout) << status.status().to_string();
  if (*reached == 0) {
    const uint64_t abort = worker.client().post(ipc::UpdateAbort{steps.ready.session});
    const auto aborted = worker.client().take<ipc::UpdateAborted>(abort);
    EXPECT_TRUE(aborted.is_ok()) << aborted.status().to_string();
    worker.expect_whole({old}, steps.ready.segment_name);
  } else {
    const auto committed = worker.client().take<ipc::UpdateCommitted>(*reached);
    EXPECT_TRUE(committed.is_ok()) << committed.status().to_string();
    worker.expect_whole({old + 1}, steps.ready.segment_name);
  }
}

// The segment as any process of the same user can write it, whatever was sealed.
class ShmBytes {
 public:
  explicit ShmBytes(const ipc::UpdateReady& ready)
      : half_(ipc::weight_half_bytes(ready.bucket_bytes)) {
    auto region = ipc::ShmRegion::open(ready.segment_name, ready.segment_bytes);
    EXACT_CHECK(region.is_ok(), "a segment that was just made can't be opened");
    region_ = std::move(*region);
  }
  std::span<std::byte> header(uint64_t bucket) {
    return region_->bytes().subspan(bucket % 2 * half_);
  }
  std::span<std::byte> payload(uint64_t bucket) {
    return header(bucket).subspan(ipc::kBucketHeaderBytes);
  }

 private:
  uint64_t half_;
  std::unique_ptr<ipc::ShmRegion> region_;
};

// ---- bytes that are not those that the manifest announced
// Sends buckets until one is refused, else commits; the worker must refuse somewhere.
void expect_refused(FaultyWorker& worker, UpdateSteps& steps, uint64_t first_bucket) {
  const uint64_t old = worker.live_version();
  Status refused;
  for (uint64_t i = first_bucket; i < steps.bucket_count() && refused.is_ok(); i++) {
    if (i > first_bucket) steps.write(i);
    refused = steps.announce(i).status();
  }
  if (refused.is_ok()) refused = steps.commit().status();
  EXPECT_FALSE(refused.is_ok()) << "wrong bytes were committed";
  EXPECT_NE(refused.message().find("serves on"), std::string::npos) << refused.to_string();
  worker.expect_whole({old}, steps.ready.segment_name);
}

uint64_t bucket_of(uint64_t point, uint64_t buckets) {
  return std::min(point / 2, buckets - 1);
}

void flip_bit(FaultyWorker& worker, uint64_t point, Random& random) {
  auto steps = worker.update(worker.live_version() + 1);
  const uint64_t bucket = bucket_of(point, worker.bucket_count());
  ASSERT_TRUE(drive_to(steps, 2 * bucket + 1).is_ok());
  ShmBytes shared(steps.ready);
  const uint64_t byte = below(random, steps.payload_bytes(bucket));
  shared.payload(bucket)[byte] ^= static_cast<std::byte>(1 << below(random, 8));
  expect_refused(worker, steps, bucket);
}

void flip_header(FaultyWorker& worker, uint64_t point, Random& random) {
  auto steps = worker.update(worker.live_version() + 1);
  const uint64_t bucket = bucket_of(point, worker.bucket_count());
  ASSERT_TRUE(drive_to(steps, 2 * bucket + 1).is_ok());
  ShmBytes shared(steps.ready);
  shared.header(bucket)[below(random, ipc::kBucketHeaderBytes)] ^=
      static_cast<std::byte>(1 << below(random, 8));
  expect_refused(worker, steps, bucket);
}

void leave_bucket_open(FaultyWorker& worker, uint64_t point, Random&) {
  auto steps = worker.update(worker.live_version() + 1);
  const uint64_t bucket = bucket_of(point, worker.bucket_count());
  ASSERT_TRUE(drive_to(steps, 2 * bucket).is_ok());
  steps.segment().begin_bucket(bucket);
  expect_refused(worker, steps, bucket);
}

// ---- manifests that the worker must not take
void expect_begin_refused(FaultyWorker& worker, const std::function<void(ipc::UpdateBegin&)>& spoil,
                          Code code) {
  const uint64_t old = worker.live_version();
  auto steps = worker.update(old + 1);
  spoil(steps.message);
  const auto begun = steps.begin();
  EXPECT_EQ(begun.status().code(), code) << begun.status().to_string();
  worker.expect_whole({old}, "");
}

ipc::ManifestTensor& any_tensor(ipc::UpdateBegin& begin, Random& random) {
  return begin.tensors[below(random, begin.tensors.size())];
}

void tensor_missing(FaultyWorker& worker, uint64_t, Random& random) {
  expect_begin_refused(
      worker,
      [&](auto& begin) {
        begin.tensors.erase(begin.tensors.begin() +
                            static_cast<int64_t>(below(random, begin.tensors.size())));
      },
      Code::invalid);
}
void tensor_twice(FaultyWorker& worker, uint64_t, Random& random) {
  expect_begin_refused(
      worker,
      [&](auto& begin) {
        const ipc::ManifestTensor twice = any_tensor(begin, random);
        begin.tensors.push_back(twice);
      },
      Code::invalid);
}
void tensor_of_wrong_shape(FaultyWorker& worker, uint64_t, Random& random) {
  expect_begin_refused(
      worker, [&](auto& begin) { any_tensor(begin, random).shape.back() += 1; }, Code::invalid);
}
void version_not_above(FaultyWorker& worker, uint64_t, Random& random) {
  expect_begin_refused(
      worker, [&](auto& begin) { begin.weight_version -= 1 + below(random, begin.weight_version); },
      Code::invalid);
}
void other_contract(FaultyWorker& worker, uint64_t, Random&) {
  expect_begin_refused(
      worker, [&](auto& begin) { begin.contract_id[5] = begin.contract_id[5] == '0' ? '1' : '0'; },
      Code::contract_mismatch);
}
void wrong_digest(FaultyWorker& worker, uint64_t, Random& random) {
  auto steps = worker.update(worker.live_version() + 1);
  std::string& digest = any_tensor(steps.message, random).digest;
  digest[7] = digest[7] == '0' ? '1' : '0';
  ASSERT_TRUE(steps.begin().is_ok());
  steps.write(0);
  expect_refused(worker, steps, 0);
}
void no_room(FaultyWorker& worker, uint64_t, Random&) {
  constexpr rlim_t kNoFileAboveBytes = 65'536;  // the log's files are far below it
  rlimit before{};
  const rlimit small{kNoFileAboveBytes, RLIM_INFINITY};
  ASSERT_EQ(::prlimit(worker.process(), RLIMIT_FSIZE, &small, &before), 0);
  const uint64_t old = worker.live_version();
  const auto begun = worker.update(old + 1).begin();
  ASSERT_EQ(::prlimit(worker.process(), RLIMIT_FSIZE, &before, nullptr), 0);
  EXPECT_FALSE(begun.is_ok());
  EXPECT_NE(begun.status().message().find("shared memory"), std::string::npos)
      << begun.status().to_string();
  worker.expect_whole({old}, "");
}

// ---- messages that the state does not allow
void second_trainer(FaultyWorker& worker, uint64_t point, Random&) {
  const uint64_t old = worker.live_version();
  auto steps = worker.update(old + 1);
  const bool posts = is_commit(point, worker.bucket_count());
  ASSERT_TRUE(drive_to(steps, posts ? point - 1 : point).is_ok());
  RawClient rival(worker.endpoint());
  rival.hello();
  UpdateSteps second(rival, bridge_tests::tiny_config(), old + 2, kBucketBytes);
  EXPECT_EQ(second.begin().status().code(), Code::exhausted);
  // Nor can it touch what is not its own.
  const uint64_t session = steps.ready.session;
  EXPECT_EQ(rival.call<ipc::UpdateAborted>(ipc::UpdateAbort{session}).status().code(),
            Code::invalid);
  EXPECT_EQ(rival.call<ipc::UpdateCommitted>(ipc::UpdateCommit{session}).status().code(),
            Code::invalid);
  for (uint64_t i = point / 2; i < steps.bucket_count(); i++) {
    const Status sent = steps.send(i);
    ASSERT_TRUE(sent.is_ok()) << sent.to_string();
  }
  const auto committed = steps.commit();
  EXPECT_TRUE(committed.is_ok()) << committed.status().to_string();
  worker.expect_whole({old + 1}, steps.ready.segment_name);
}

void out_of_order(FaultyWorker& worker, uint64_t point, Random& random) {
  const uint64_t buckets = worker.bucket_count();
  const uint64_t old = worker.live_version();
  auto steps = worker.update(old + 1);
  const uint64_t next = bucket_of(point, buckets);
  ASSERT_TRUE(drive_to(steps, 2 * next).is_ok());
  const uint64_t wrong = (next + 1 + below(random, buckets - 1)) % buckets;
  steps.write(wrong);
  const auto refused = steps.announce(wrong);
  EXPECT_EQ(refused.status().code(), Code::invalid) << refused.status().to_string();
  worker.expect_whole({old}, steps.ready.segment_name);
}

void commit_early(FaultyWorker& worker, uint64_t point, Random&) {
  const uint64_t old = worker.live_version();
  auto steps = worker.update(old + 1);
  ASSERT_TRUE(drive_to(steps, 2 * bucket_of(point, worker.bucket_count())).is_ok());
  EXPECT_EQ(steps.commit().status().code(), Code::invalid);
  worker.expect_whole({old}, steps.ready.segment_name);
}

void abort_update(FaultyWorker& worker, uint64_t point, Random&) {
  const uint64_t buckets = worker.bucket_count();
  const uint64_t old = worker.live_version();
  auto steps = worker.update(old + 1);
  ASSERT_TRUE(drive_to(steps, std::min(point, 2 * buckets)).is_ok());
  const auto aborted =
      worker.client().call<ipc::UpdateAborted>(ipc::UpdateAbort{steps.ready.session});
  EXPECT_TRUE(aborted.is_ok()) << aborted.status().to_string();
  worker.expect_whole({old}, steps.ready.segment_name);
}

}  // namespace

const std::vector<Fault>& all_faults() {
  static const std::vector<Fault> faults{
      {"trainer killed", 8, true, true, kill_trainer},
      {"trainer stopped", 2, true, true, stop_trainer},
      {"worker killed", 5, true, false, kill_worker},
      {"worker stopped", 5, true, false, stop_worker},
      {"bit of a bucket flipped", 15, true, false, flip_bit},
      {"bit of a header flipped", 10, true, false, flip_header},
      {"bucket never finished", 5, true, false, leave_bucket_open},
      {"tensor missing", 5, false, false, tensor_missing},
      {"tensor twice", 5, false, false, tensor_twice},
      {"tensor of the wrong shape", 5, false, false, tensor_of_wrong_shape},
      {"version not above the live one", 5, false, false, version_not_above},
      {"another contract", 3, false, false, other_contract},
      {"wrong digest in the manifest", 5, false, false, wrong_digest},
      {"no room in shared memory", 3, false, false, no_room},
      {"second trainer", 6, true, false, second_trainer},
      {"buckets out of order", 5, true, false, out_of_order},
      {"commit too early", 4, true, false, commit_early},
      {"abort", 4, true, false, abort_update}};
  return faults;
}

}  // namespace exact::fault_tests
