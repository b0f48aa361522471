// weight_memory.cc owns the weights of a slot as plain memory: copied from another slot, saved to
// the host, given back and restored, in the backend's own layout.
#include <algorithm>
#include <tuple>
#include <utility>

#include "engine/weights.h"

namespace exact {
namespace {

// What is compared on the way back is fetched in pieces of this size.
constexpr size_t kCheckBytes = size_t{64} << 20;

template <class Weights, class Visitor>
void for_each_matrix(Weights& weights, const Visitor& visit) {
  visit(weights.lm_head);
  for (auto& layer : weights.layers) {
    visit(layer.qkv), visit(layer.output), visit(layer.gate_up), visit(layer.down);
  }
}

// Of one model, always in the same order.
std::vector<Buffer*> buffers_of(ModelWeights& weights) {
  std::vector<Buffer*> buffers = {&weights.embedding, &weights.final_norm};
  for (LayerWeights& layer : weights.layers) {
    for (Buffer* buffer :
         {&layer.input_norm, &layer.post_norm, &layer.query_norm, &layer.key_norm, &layer.qkv_bias,
          &layer.output_bias, &layer.gate_up_bias, &layer.down_bias}) {
      buffers.push_back(buffer);
    }
  }
  for_each_matrix(weights, [&](LinearWeight& matrix) { buffers.push_back(&matrix.storage); });
  return buffers;
}

// Bytes, as the pairs that upload and download take. Every buffer has whole bf16s.
TensorView view_of(const Buffer& buffer, size_t offset, size_t bytes) {
  return TensorView(static_cast<std::byte*>(buffer.data()) + offset, DType::bf16, 1,
                    static_cast<int64_t>(bytes / 2));
}

}  // namespace

Status WeightSlot::begin_from(const WeightSlot& base) {
  EXACT_CHECK(base.complete_ && &base != this, "an update begins as a copy of complete weights");
  begin();
  is_written_ = true;
  const std::vector<Buffer*> to = buffers_of(weights_);
  const std::vector<Buffer*> from = buffers_of(const_cast<ModelWeights&>(base.weights_));
  for (size_t i = 0; i < from.size(); i++) {
    if (to[i]->bytes() != from[i]->bytes()) {
      to[i]->reset();
      weights_.identity = backend_.new_identity();
      if (from[i]->bytes() == 0) continue;
      EXACT_ASSIGN(*to[i], backend_.allocate(from[i]->bytes()));
    }
    if (from[i]->bytes() == 0) continue;
    EXACT_RETURN_IF_ERROR(backend_.copy_buffer(*from[i], *to[i]));
  }
  std::vector<std::pair<int64_t, int64_t>> shapes;
  for_each_matrix(base.weights_, [&](const LinearWeight& matrix) {
    shapes.emplace_back(matrix.out_features, matrix.in_features);
  });
  size_t next = 0;
  for_each_matrix(weights_, [&](LinearWeight& matrix) {
    std::tie(matrix.out_features, matrix.in_features) = shapes[next++];
  });
  digests_ = base.digests_;
  whole_ = base.whole_;
  inherited_.assign(table_.size(), true);
  return backend_.finish();
}

void WeightSlot::begin_changes() {
  EXACT_CHECK(complete_, "changes are changes to complete weights");
  const std::vector<Digest128> digests = digests_;
  begin();
  digests_ = digests;
  whole_.assign(table_.size(), true);
  inherited_.assign(table_.size(), true);
}

void WeightSlot::undo_begin() {
  EXACT_CHECK(!is_written_ && !before_.empty(), "weights that were overwritten don't come back");
  digests_ = before_;
  whole_.assign(table_.size(), true);
  inherited_.assign(table_.size(), false);
  open_index_ = SIZE_MAX;
  open_bytes_ = {};
  complete_ = true;
}

// A tensor that comes after all takes the place of the one that was there.
void WeightSlot::replace_inherited(size_t index) {
  if (!inherited_[index]) return;
  inherited_[index] = false;
  whole_[index] = false;
}

Result<SavedWeights> WeightSlot::save() {
  EXACT_CHECK(complete_, "complete weights are saved");
  SavedWeights saved;
  for (const Buffer* buffer : buffers_of(weights_)) {
    SavedWeights::Part& part = saved.parts.emplace_back();
    part.bytes.resize(buffer->bytes());
    if (!part.bytes.empty()) backend_.download(part.bytes, view_of(*buffer, 0, buffer->bytes()));
  }
  EXACT_RETURN_IF_ERROR(backend_.finish());
  for (SavedWeights::Part& part : saved.parts) part.digest = exact::tensor_digest(part.bytes);
  return saved;
}

uint64_t WeightSlot::release() {
  uint64_t freed = 0;
  for (Buffer* buffer : buffers_of(weights_)) {
    freed += buffer->bytes();
    buffer->reset();
  }
  return freed;
}

Status WeightSlot::restore(const SavedWeights& saved) {
  const std::vector<Buffer*> buffers = buffers_of(weights_);
  EXACT_CHECK(saved.parts.size() == buffers.size(), "weights of another model are restored");
  weights_.identity = backend_.new_identity();
  for (size_t i = 0; i < buffers.size(); i++) {
    const size_t bytes = saved.parts[i].bytes.size();
    if (bytes == 0) continue;
    EXACT_ASSIGN(*buffers[i], backend_.allocate(bytes));
    backend_.upload(view_of(*buffers[i], 0, bytes), saved.parts[i].bytes);
  }
  EXACT_RETURN_IF_ERROR(backend_.finish());
  std::vector<std::byte> fetched;
  for (size_t i = 0; i < buffers.size(); i++) {
    const SavedWeights::Part& part = saved.parts[i];
    bool is_equal = exact::tensor_digest(part.bytes) == part.digest;
    for (size_t begin = 0; is_equal && begin < part.bytes.size(); begin += kCheckBytes) {
      fetched.resize(std::min(kCheckBytes, part.bytes.size() - begin));
      backend_.download(fetched, view_of(*buffers[i], begin, fetched.size()));
      EXACT_RETURN_IF_ERROR(backend_.finish());
      is_equal = std::equal(fetched.begin(), fetched.end(),
                            part.bytes.begin() + static_cast<std::ptrdiff_t>(begin));
    }
    if (!is_equal) {
      return {Code::corrupt, "the weights that came back are not those that were saved"};
    }
  }
  return {};
}

}  // namespace exact
