// weight_shm.h owns the shared memory of one weight update: two halves in turn, so that the trainer
// fills one while the worker drains the other. Bucket i lies in half i % 2:
//
//   half    64-byte header | payload of at most bucket_bytes | padding to a multiple of 64 bytes
//   header  magic u64, session u64, index u64, payload bytes u64, payload checksum u64 (xxh3-64),
//           two zero words, commit word u64 = index + 1, written last with release
//
// No mutex: who may write is settled by messages (UpdateBucket, UpdateBucketDone), and a writer
// that breaks off leaves a commit word of 0. Nothing in the memory is trusted: the reader compares
// every field with what the session expects, and takes no length from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/base/result.h"

namespace exact::ipc {

inline constexpr uint64_t kBucketHeaderBytes = 64;
inline constexpr uint64_t kMaxBucketBytes = 1ull << 40;

// Of one half, and of the whole segment. bucket_bytes is in [1, kMaxBucketBytes].
uint64_t weight_half_bytes(uint64_t bucket_bytes);
uint64_t weight_segment_bytes(uint64_t bucket_bytes);

class ShmRegion;

// The worker's side: makes and owns the memory, reads it.
class WeightSegment {
 public:
  // invalid: bucket_bytes out of range; exhausted: no room in /dev/shm.
  static Result<std::unique_ptr<WeightSegment>> create(uint64_t session, uint64_t bucket_bytes);
  ~WeightSegment();
  WeightSegment(const WeightSegment&) = delete;
  WeightSegment& operator=(const WeightSegment&) = delete;

  const std::string& name() const;
  uint64_t bytes() const;  // of the whole segment
  uint64_t bucket_bytes() const { return bucket_bytes_; }

  // The payload of bucket `index`, checked; valid until the writer may write that half again. The
  // other process can still write to it: copy it, and check the tensors' digests on the copy.
  // corrupt: not committed, or another magic, session, index, length or checksum.
  Result<std::span<const std::byte>> bucket(uint64_t index, uint64_t expected_bytes) const;

 private:
  WeightSegment(std::unique_ptr<ShmRegion> region, uint64_t session, uint64_t bucket_bytes);
  std::unique_ptr<ShmRegion> region_;
  uint64_t session_ = 0;
  uint64_t bucket_bytes_ = 0;
};

// The trainer's side: opens what UpdateReady names, writes it.
class WeightSegmentWriter {
 public:
  // corrupt: segment_bytes does not follow from bucket_bytes, or is not the file's size; and the
  // errors of ShmRegion::open.
  static Result<std::unique_ptr<WeightSegmentWriter>> open(const std::string& name,
                                                           uint64_t segment_bytes, uint64_t session,
                                                           uint64_t bucket_bytes);
  ~WeightSegmentWriter();
  WeightSegmentWriter(const WeightSegmentWriter&) = delete;
  WeightSegmentWriter& operator=(const WeightSegmentWriter&) = delete;

  // Room for bucket_bytes. The worker must be done with bucket index - 2.
  std::span<std::byte> begin_bucket(uint64_t index);
  // Seals what begin_bucket(index) gave: computes the checksum, writes the header, commits.
  void finish_bucket(uint64_t index, uint64_t payload_bytes);

 private:
  WeightSegmentWriter(std::unique_ptr<ShmRegion> region, uint64_t session, uint64_t bucket_bytes);
  std::unique_ptr<ShmRegion> region_;
  uint64_t session_ = 0;
  uint64_t bucket_bytes_ = 0;
  std::optional<uint64_t> open_bucket_;
};

}  // namespace exact::ipc
