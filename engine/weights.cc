#include "engine/weights.h"

#include <algorithm>

namespace exact {
namespace {

// Where a tensor of the table lives: a matrix packed by the backend, or plain rows.
struct Destination {
  LinearWeight* matrix = nullptr;
  Buffer* rows = nullptr;
};

Destination layer_destination(LayerWeights& layer, TensorRole role) {
  switch (role) {
    case TensorRole::input_norm:
      return {.rows = &layer.input_norm};
    case TensorRole::post_norm:
      return {.rows = &layer.post_norm};
    case TensorRole::query_norm:
      return {.rows = &layer.query_norm};
    case TensorRole::key_norm:
      return {.rows = &layer.key_norm};
    case TensorRole::query:
      return {.matrix = &layer.query};
    case TensorRole::key:
      return {.matrix = &layer.key};
    case TensorRole::value:
      return {.matrix = &layer.value};
    case TensorRole::output:
      return {.matrix = &layer.output};
    case TensorRole::gate:
      return {.matrix = &layer.gate};
    case TensorRole::up:
      return {.matrix = &layer.up};
    case TensorRole::down:
      return {.matrix = &layer.down};
    case TensorRole::query_bias:
      return {.rows = &layer.query_bias};
    case TensorRole::key_bias:
      return {.rows = &layer.key_bias};
    case TensorRole::value_bias:
      return {.rows = &layer.value_bias};
    case TensorRole::output_bias:
      return {.rows = &layer.output_bias};
    case TensorRole::gate_bias:
      return {.rows = &layer.gate_bias};
    case TensorRole::up_bias:
      return {.rows = &layer.up_bias};
    case TensorRole::down_bias:
      return {.rows = &layer.down_bias};
    case TensorRole::embedding:
    case TensorRole::final_norm:
    case TensorRole::lm_head:
      break;
  }
  EXACT_CHECK(false, "a tensor of no layer has a layer's index");
}

Destination destination(ModelWeights& weights, const TensorSpec& spec) {
  switch (spec.role) {
    case TensorRole::embedding:
      return {.rows = &weights.embedding};
    case TensorRole::final_norm:
      return {.rows = &weights.final_norm};
    case TensorRole::lm_head:
      return {.matrix = &weights.lm_head};
    default:
      return layer_destination(weights.layers[static_cast<size_t>(spec.layer)], spec.role);
  }
}

std::string quoted(const TensorSpec& spec) {
  return "tensor '" + spec.name + "'";
}

bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 2 == 0;
}

}  // namespace

WeightSlot::WeightSlot(const ModelConfig& config, Backend& backend)
    : config_(config), backend_(backend), table_(tensor_table(config)) {
  weights_.layers.resize(static_cast<size_t>(config_.layers));
  begin();
}

void WeightSlot::begin() {
  digests_.assign(table_.size(), {});
  whole_.assign(table_.size(), false);
  open_index_ = SIZE_MAX;
  open_bytes_.clear();
  complete_ = false;
}

Status WeightSlot::append(size_t index, std::span<const std::byte> bytes) {
  EXACT_CHECK(index < table_.size(), "a tensor outside the table");
  const TensorSpec& spec = table_[index];
  if (whole_[index]) return {Code::invalid, quoted(spec) + " is whole already: send it once"};
  if (open_index_ != SIZE_MAX && open_index_ != index) {
    return {Code::invalid, quoted(spec) + " came before " + quoted(table_[open_index_]) +
                               " was whole: send one tensor after the other"};
  }
  const auto wanted = static_cast<size_t>(spec.bytes());
  const size_t received = open_index_ == index ? open_bytes_.size() : 0;
  if (bytes.size() > wanted - received) {
    return {Code::invalid, quoted(spec) + " has more than its " + std::to_string(wanted) +
                               " bytes: its shape is that of another model"};
  }
  if (bytes.empty()) return {};

  // A tensor that comes in one piece is placed from where it lies.
  std::span<const std::byte> all = bytes;
  if (bytes.size() != wanted || !is_aligned(bytes.data())) {
    if (open_index_ == SIZE_MAX) open_bytes_.reserve(wanted);
    open_index_ = index;
    open_bytes_.insert(open_bytes_.end(), bytes.begin(), bytes.end());
    if (open_bytes_.size() < wanted) return {};
    all = open_bytes_;
  }
  digests_[index] = digest128(all);
  const Status placed = place(spec, all);
  whole_[index] = placed.is_ok();
  open_index_ = SIZE_MAX;
  open_bytes_.clear();
  return placed;
}

Status WeightSlot::place(const TensorSpec& spec, std::span<const std::byte> bytes) {
  // pack_linear and upload only read; a TensorView has no type for that.
  const TensorView host(const_cast<std::byte*>(bytes.data()), DType::bf16, spec.rows, spec.columns);
  const Destination target = destination(weights_, spec);
  if (target.matrix != nullptr) {
    EXACT_RETURN_IF_ERROR(backend_.pack_linear(host, *target.matrix));
  } else {
    if (target.rows->bytes() < bytes.size()) {
      EXACT_ASSIGN(*target.rows, backend_.allocate(bytes.size()));
    }
    backend_.upload(target.rows->view(DType::bf16, spec.rows, spec.columns), bytes);
  }
  if (spec.role == TensorRole::embedding && config_.tied_embeddings) {
    EXACT_RETURN_IF_ERROR(backend_.pack_linear(host, weights_.lm_head));
  }
  return backend_.finish();  // the caller's bytes are his again
}

Status WeightSlot::verify(size_t index, const Digest128& expected) const {
  EXACT_CHECK(index < table_.size(), "a tensor outside the table");
  const TensorSpec& spec = table_[index];
  if (!whole_[index]) return {Code::invalid, quoted(spec) + " is not whole: send the rest of it"};
  if (digests_[index] == expected) return {};
  return {Code::corrupt, quoted(spec) + " has digest " + digests_[index].to_hex() + ", not the " +
                             expected.to_hex() + " it was announced with: send it again"};
}

Status WeightSlot::complete() {
  const auto missing = std::find(whole_.begin(), whole_.end(), false);
  if (missing != whole_.end()) {
    const auto index = static_cast<size_t>(missing - whole_.begin());
    return {Code::invalid, quoted(table_[index]) +
                               (index == open_index_ ? " is cut short" : " is missing") +
                               ": send every tensor of the model"};
  }
  open_bytes_ = {};  // as large as the largest tensor: not kept while the weights serve
  complete_ = true;
  return {};
}

const ModelWeights& WeightSlot::weights() const {
  EXACT_CHECK(complete_, "weights are used after complete()");
  return weights_;
}

Digest128 WeightSlot::tensor_digest(size_t index) const {
  EXACT_CHECK(index < table_.size() && whole_[index], "the digest of a tensor that is not whole");
  return digests_[index];
}

Digest128 WeightSlot::digest() const {
  DigestStream stream;
  for (size_t index = 0; index < table_.size(); index++) {
    stream.update(table_[index].name + "=" + tensor_digest(index).to_hex() + "\n");
  }
  return stream.finish();
}

}  // namespace exact
