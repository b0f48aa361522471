#include "engine/weights.h"

#include <algorithm>

#include "engine/weight_places.h"

namespace exact {
namespace {

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
  before_ = complete_ ? digests_ : std::vector<Digest128>();
  is_written_ = false;
  inherited_.assign(table_.size(), false);
  digests_.assign(table_.size(), {});
  whole_.assign(table_.size(), false);
  open_index_ = SIZE_MAX;
  open_bytes_.clear();
  abandon();
  chunk_digests_.assign(table_.size(), {});
  complete_ = false;
}

// Whether bytes of this tensor may come now: on the host or on the device.
Status WeightSlot::take_turn(size_t index) {
  EXACT_CHECK(index < table_.size(), "a tensor outside the table");
  const TensorSpec& spec = table_[index];
  replace_inherited(index);
  if (whole_[index]) return {Code::invalid, quoted(spec) + " is whole already: send it once"};
  if (open_index_ != SIZE_MAX && open_index_ != index) {
    return {Code::invalid, quoted(spec) + " came before " + quoted(table_[open_index_]) +
                               " was whole: send one tensor after the other"};
  }
  return {};
}

Status WeightSlot::append(size_t index, std::span<const std::byte> bytes) {
  EXACT_RETURN_IF_ERROR(take_turn(index));
  const TensorSpec& spec = table_[index];
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
  is_written_ = true;
  digests_[index] = exact::tensor_digest(all);
  const Status placed = place(spec, all);
  whole_[index] = placed.is_ok();
  open_index_ = SIZE_MAX;
  open_bytes_.clear();
  return placed;
}

Status WeightSlot::place(const TensorSpec& spec, std::span<const std::byte> bytes) {
  // pack_linear and upload only read; a TensorView has no type for that.
  const TensorView host(const_cast<std::byte*>(bytes.data()), DType::bf16, spec.rows, spec.columns);
  const WeightPlace target = WeightPlaces(config_, weights_).of(spec);
  if (target.matrix != nullptr) {
    EXACT_RETURN_IF_ERROR(pack(host, target.offset, target.total, *target.matrix));
  } else {
    EXACT_RETURN_IF_ERROR(reserve_plain(target.total, *target.plain));
    const TensorView row = target.plain->view(DType::bf16, 1, target.total);
    backend_.upload(row.slice_columns(target.offset, spec.rows * spec.columns), bytes);
  }
  if (spec.role == TensorRole::embedding && config_.tied_embeddings) {
    EXACT_RETURN_IF_ERROR(pack(host, 0, spec.rows, weights_.lm_head));
  }
  return backend_.finish();  // the caller's bytes are his again
}

// Memory that is kept when it fits; with other memory the weights are others to a recorded step.
Status WeightSlot::reserve_plain(int64_t elements, Buffer& buffer) {
  const auto bytes = static_cast<size_t>(elements) * sizeof(uint16_t);
  if (buffer.bytes() >= bytes) return {};
  EXACT_ASSIGN(buffer, backend_.allocate(bytes));
  weights_.identity = backend_.new_identity();
  return {};
}

Status WeightSlot::read_tensor(size_t index, std::span<std::byte> out) {
  EXACT_CHECK(complete_ && index < table_.size(), "a tensor of complete weights is read");
  const TensorSpec& spec = table_[index];
  EXACT_CHECK(out.size() == static_cast<size_t>(spec.bytes()) && is_aligned(out.data()),
              "a tensor is read into its own size");
  const WeightPlace source = WeightPlaces(config_, weights_).of(spec);
  if (source.matrix != nullptr) {
    const TensorView host(out.data(), DType::bf16, spec.rows, spec.columns);
    EXACT_RETURN_IF_ERROR(backend_.unpack_linear(*source.matrix, source.offset, host));
  } else {
    const TensorView row = source.plain->view(DType::bf16, 1, source.total);
    backend_.download(out, row.slice_columns(source.offset, spec.rows * spec.columns));
  }
  return backend_.finish();
}

Status WeightSlot::reserve_matrix(int64_t out_features, int64_t in_features, LinearWeight& weight) {
  const void* before = weight.storage.data();
  EXACT_RETURN_IF_ERROR(backend_.reserve_linear(out_features, in_features, weight));
  if (weight.storage.data() != before) weights_.identity = backend_.new_identity();
  return {};
}

// Rows [first_row, ...) of a matrix with out_features rows.
Status WeightSlot::pack(const TensorView& host, int64_t first_row, int64_t out_features,
                        LinearWeight& weight) {
  EXACT_RETURN_IF_ERROR(reserve_matrix(out_features, host.columns, weight));
  backend_.pack_linear(host, first_row, weight);
  return {};
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
