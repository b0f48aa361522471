// weights_on_device.cc owns tensors that are in the backend's device memory already when they come:
// they are copied and digested there, in one pass, many at a time.
#include <string>

#include "engine/weight_places.h"
#include "engine/weights.h"

namespace exact {
namespace {

std::string quoted(const TensorSpec& spec) {
  return "tensor '" + spec.name + "'";
}

}  // namespace

Result<std::byte*> WeightSlot::device_place(const TensorSpec& spec) {
  const WeightPlace place = WeightPlaces(config_, weights_).of(spec);
  if (place.matrix == nullptr) {
    EXACT_RETURN_IF_ERROR(reserve_plain(place.total, *place.plain));
    return static_cast<std::byte*>(place.plain->data()) +
           static_cast<size_t>(place.offset) * sizeof(uint16_t);
  }
  EXACT_RETURN_IF_ERROR(reserve_matrix(place.total, spec.columns, *place.matrix));
  std::byte* rows = backend_.rows_in_place(*place.matrix, place.offset);
  if (rows == nullptr) {
    return Status(Code::unsupported, quoted(spec) + " lies on a GPU, but backend " +
                                         std::string(backend_.name()) + " can't read it there");
  }
  return rows;
}

Status WeightSlot::append_on_device(size_t index, uint64_t offset, const std::byte* data,
                                    uint64_t bytes) {
  EXACT_RETURN_IF_ERROR(take_turn(index));
  EXACT_CHECK(!copies_started_, "pieces are added before the copies start, or after they are done");
  const TensorSpec& spec = table_[index];
  const auto wanted = static_cast<uint64_t>(spec.bytes());
  const uint64_t received = open_index_ == index ? open_device_bytes_ : 0;
  const bool is_last = bytes == wanted - received;
  if (offset != received || bytes > wanted - received ||
      (!is_last && bytes % kDigestChunkBytes != 0)) {
    return {Code::invalid, quoted(spec) + " came out of order, or has more than its " +
                               std::to_string(wanted) + " bytes"};
  }
  if ((reinterpret_cast<uintptr_t>(data) | bytes) % 16 != 0) {
    return {Code::invalid, quoted(spec) +
                               " does not begin and end at a multiple of 16 bytes: publish it "
                               "through shared memory"};
  }
  EXACT_ASSIGN(std::byte* const place, device_place(spec));
  std::vector<Digest128>& chunks = chunk_digests_[index];
  chunks.resize(digest_chunk_count(wanted));
  const size_t first_chunk = offset / kDigestChunkBytes;
  device_copies_.push_back({data, place + offset, bytes,
                            std::span(chunks).subspan(first_chunk, digest_chunk_count(bytes))});
  if (spec.role == TensorRole::embedding && config_.tied_embeddings) {
    EXACT_RETURN_IF_ERROR(reserve_matrix(spec.rows, spec.columns, weights_.lm_head));
    tied_digests_.resize(chunks.size());
    device_copies_.push_back(
        {data, backend_.rows_in_place(weights_.lm_head, 0) + offset, bytes,
         std::span(tied_digests_).subspan(first_chunk, digest_chunk_count(bytes))});
  }
  device_pieces_.push_back({index, is_last});
  open_index_ = is_last ? SIZE_MAX : index;
  open_device_bytes_ = is_last ? 0 : received + bytes;
  return {};
}

Result<bool> WeightSlot::device_copies_done() {
  if (device_copies_.empty()) return true;
  if (!copies_started_) {
    is_written_ = true;
    EXACT_RETURN_IF_ERROR(backend_.start_copies(device_copies_));
    copies_started_ = true;
    return false;
  }
  EXACT_ASSIGN(const bool done, backend_.copies_done());
  if (!done) return false;
  copies_started_ = false;
  device_copies_.clear();
  for (const DevicePiece& piece : device_pieces_) {
    if (piece.is_last) EXACT_RETURN_IF_ERROR(finish_on_device(piece.index));
  }
  device_pieces_.clear();
  return true;
}

// All bytes of a tensor are in their place.
Status WeightSlot::finish_on_device(size_t index) {
  const TensorSpec& spec = table_[index];
  digests_[index] = tensor_digest_of_chunks(chunk_digests_[index]);
  chunk_digests_[index].clear();
  whole_[index] = true;
  // The tied head is a second copy of the embedding, read from the sender's memory once more.
  if (spec.role == TensorRole::embedding && config_.tied_embeddings &&
      tensor_digest_of_chunks(tied_digests_) != digests_[index]) {
    return {Code::corrupt, quoted(spec) +
                               " changed while it was copied: don't write to tensors "
                               "before push() has returned"};
  }
  return {};
}

void WeightSlot::abandon() {
  if (copies_started_) (void)backend_.finish_copies();
  copies_started_ = false;
  device_copies_.clear();
  device_pieces_.clear();
  open_device_bytes_ = 0;
}

}  // namespace exact
