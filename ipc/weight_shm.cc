#include "ipc/weight_shm.h"

#include <atomic>
#include <cstring>
#include <utility>

#include "ipc/shm_region.h"
#include "kernels/base/check.h"
#include "kernels/base/digest.h"

namespace exact::ipc {
namespace {

constexpr uint64_t kBucketMagic = 0x31544b4355425845;  // "EXBUCKT1", little-endian
constexpr uint64_t kAlignment = 64;                    // of a half, for wide copies

// As it lies in memory; the offsets are the protocol's.
struct BucketHeader {
  uint64_t magic;
  uint64_t session;
  uint64_t index;
  uint64_t payload_bytes;
  uint64_t checksum;
  uint64_t zero[2];
  uint64_t commit;  // index + 1 once all else is written; 0 while it is not
};
static_assert(sizeof(BucketHeader) == kBucketHeaderBytes);

bool is_bucket_size(uint64_t bytes) {
  return bytes > 0 && bytes <= kMaxBucketBytes;
}

Status bad_bucket_size(uint64_t bytes) {
  return Status(Code::invalid, "bucket_bytes is " + std::to_string(bytes) + ": it must be 1 to " +
                                   std::to_string(kMaxBucketBytes));
}

// The half where bucket `index` lies.
BucketHeader* header_of(const ShmRegion& region, uint64_t bucket_bytes, uint64_t index) {
  std::byte* half = region.bytes().data() + (index % 2) * weight_half_bytes(bucket_bytes);
  return reinterpret_cast<BucketHeader*>(half);
}

std::byte* payload_of(BucketHeader* header) {
  return reinterpret_cast<std::byte*>(header) + kBucketHeaderBytes;
}

Status corrupt(uint64_t index, const std::string& what) {
  return Status(Code::corrupt, "bucket " + std::to_string(index) + ": " + what);
}

// Of a copy, so that a writer can't change a field between its check and its use.
Status check_header(const BucketHeader& header, uint64_t session, uint64_t index,
                    uint64_t expected_bytes) {
  if (header.commit == 0) return corrupt(index, "the writer has not finished it");
  if (header.magic != kBucketMagic) {
    return corrupt(index, "its header does not begin with the magic number");
  }
  if (header.zero[0] != 0 || header.zero[1] != 0) {
    return corrupt(index, "its header's spare words are not zero");
  }
  if (header.session != session) {
    return corrupt(index, "it is of session " + std::to_string(header.session) + ", not " +
                              std::to_string(session));
  }
  if (header.index != index || header.commit != index + 1) {
    return corrupt(index, "its half holds bucket " + std::to_string(header.index) +
                              " with the commit word of bucket " +
                              std::to_string(header.commit - 1));
  }
  if (header.payload_bytes != expected_bytes) {
    return corrupt(index, "it has " + std::to_string(header.payload_bytes) +
                              " bytes, the manifest says " + std::to_string(expected_bytes));
  }
  return {};
}

}  // namespace

uint64_t weight_half_bytes(uint64_t bucket_bytes) {
  EXACT_CHECK(is_bucket_size(bucket_bytes), "a bucket size out of range");
  return (kBucketHeaderBytes + bucket_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

uint64_t weight_segment_bytes(uint64_t bucket_bytes) {
  return 2 * weight_half_bytes(bucket_bytes);
}

WeightSegment::WeightSegment(std::unique_ptr<ShmRegion> region, uint64_t session,
                             uint64_t bucket_bytes)
    : region_(std::move(region)), session_(session), bucket_bytes_(bucket_bytes) {}
WeightSegment::~WeightSegment() = default;
const std::string& WeightSegment::name() const {
  return region_->name();
}
uint64_t WeightSegment::bytes() const {
  return region_->bytes().size();
}

Result<std::unique_ptr<WeightSegment>> WeightSegment::create(uint64_t session,
                                                             uint64_t bucket_bytes) {
  if (!is_bucket_size(bucket_bytes)) return bad_bucket_size(bucket_bytes);
  EXACT_ASSIGN(auto region, ShmRegion::create(weight_segment_bytes(bucket_bytes)));
  return std::unique_ptr<WeightSegment>(
      new WeightSegment(std::move(region), session, bucket_bytes));
}

Result<std::span<const std::byte>> WeightSegment::bucket(uint64_t index,
                                                         uint64_t expected_bytes) const {
  EXACT_CHECK(expected_bytes <= bucket_bytes_, "a bucket larger than the segment was made for");
  BucketHeader* shared = header_of(*region_, bucket_bytes_, index);
  const uint64_t commit = std::atomic_ref(shared->commit).load(std::memory_order_acquire);
  BucketHeader header;
  std::memcpy(&header, shared, sizeof(header));
  header.commit = commit;
  EXACT_RETURN_IF_ERROR(check_header(header, session_, index, expected_bytes));
  const std::span<const std::byte> payload(payload_of(shared), static_cast<size_t>(expected_bytes));
  if (digest64(payload) != header.checksum) {
    return corrupt(index, "its bytes do not match their checksum (xxh3-64): send the update again");
  }
  return payload;
}

WeightSegmentWriter::WeightSegmentWriter(std::unique_ptr<ShmRegion> region, uint64_t session,
                                         uint64_t bucket_bytes)
    : region_(std::move(region)), session_(session), bucket_bytes_(bucket_bytes) {}
WeightSegmentWriter::~WeightSegmentWriter() = default;

Result<std::unique_ptr<WeightSegmentWriter>> WeightSegmentWriter::open(const std::string& name,
                                                                       uint64_t segment_bytes,
                                                                       uint64_t session,
                                                                       uint64_t bucket_bytes) {
  if (!is_bucket_size(bucket_bytes)) return bad_bucket_size(bucket_bytes);
  if (segment_bytes != weight_segment_bytes(bucket_bytes)) {
    return Status(Code::corrupt, "a segment of " + std::to_string(segment_bytes) +
                                     " bytes can't be two halves of " +
                                     std::to_string(bucket_bytes) + "-byte buckets: expected " +
                                     std::to_string(weight_segment_bytes(bucket_bytes)));
  }
  EXACT_ASSIGN(auto region, ShmRegion::open(name, segment_bytes));
  return std::unique_ptr<WeightSegmentWriter>(
      new WeightSegmentWriter(std::move(region), session, bucket_bytes));
}

std::span<std::byte> WeightSegmentWriter::begin_bucket(uint64_t index) {
  BucketHeader* header = header_of(*region_, bucket_bytes_, index);
  // Acquire: no byte of the payload is written before the half is open.
  std::atomic_ref(header->commit).exchange(0, std::memory_order_acq_rel);
  open_bucket_ = index;
  return {payload_of(header), static_cast<size_t>(bucket_bytes_)};
}

void WeightSegmentWriter::finish_bucket(uint64_t index, uint64_t payload_bytes) {
  EXACT_CHECK(payload_bytes <= bucket_bytes_, "a payload larger than its bucket");
  EXACT_CHECK(open_bucket_ == index, "finish_bucket of another bucket than was begun");
  open_bucket_.reset();
  BucketHeader* header = header_of(*region_, bucket_bytes_, index);
  header->magic = kBucketMagic;
  header->session = session_;
  header->index = index;
  header->payload_bytes = payload_bytes;
  header->checksum = digest64({payload_of(header), static_cast<size_t>(payload_bytes)});
  header->zero[0] = header->zero[1] = 0;
  std::atomic_ref(header->commit).store(index + 1, std::memory_order_release);
}

}  // namespace exact::ipc
