// weights.h owns a model's weights in backend memory. A WeightSlot is filled tensor by tensor from
// Hugging Face bytes, each checked as it completes; only a complete slot can be used.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/tensor_table.h"
#include "kernels/backend.h"
#include "kernels/base/digest.h"

namespace exact {

struct LayerWeights {
  Buffer input_norm, post_norm;  // (1, D)
  Buffer query_norm, key_norm;   // (1, E), qwen3
  // Matrices with the same input lie in one: a chain has no neighbours, so its bits are the same.
  LinearWeight qkv;                                       // query, key, value: (H E + 2 G E, D)
  LinearWeight output;                                    // (D, H E)
  LinearWeight gate_up;                                   // (2 F, D)
  LinearWeight down;                                      // (D, F)
  Buffer qkv_bias, output_bias, gate_up_bias, down_bias;  // (1, out_features), if there
};

struct ModelWeights {
  Buffer embedding;      // (V, D) row-major
  Buffer final_norm;     // (1, D)
  LinearWeight lm_head;  // (V, D); with tied embeddings, packed from the embedding
  std::vector<LayerWeights> layers;
  uint64_t identity = 0;  // of this memory, by Backend::new_identity; the contents may change
};

// A slot's weights in host memory, in the backend's own layout.
struct SavedWeights {
  struct Part {
    std::vector<std::byte> bytes;
    Digest128 digest;
  };
  std::vector<Part> parts;
};

// Fills one ModelWeights. Tensors come in any order, the bytes of each in ascending order; one
// tensor is open at a time. Reusable: begin() forgets what was there and keeps the memory.
class WeightSlot {
 public:
  WeightSlot(const ModelConfig& config, Backend& backend);

  void begin();
  // As begin(), but as a copy of other complete weights: tensors that don't come are theirs.
  // exhausted: no room.
  Status begin_from(const WeightSlot& base);
  // As begin(), but tensors that don't come stay. Precondition: complete.
  void begin_changes();
  // Whether the weights that were here before begin() or begin_changes() are no longer all there.
  bool is_written() const { return is_written_; }
  // They are complete again. Precondition: not is_written(), and they were complete.
  void undo_begin();

  // Appends bytes to tensor `index` of the table. invalid: a second tensor before the first is
  // whole, more bytes than the tensor has, or a tensor that is whole already.
  Status append(size_t index, std::span<const std::byte> bytes);
  // As append, from memory of the backend's own device; `data` stays the caller's until the copy is
  // done. Pieces of one tensor begin at multiples of kDigestChunkBytes and come in order. Returns
  // before the bytes are read: device_copies_done() says when they were, and the digests are known.
  // unsupported: the backend has no memory of its own; invalid: as append, or data is not aligned
  // to 16 bytes.
  Status append_on_device(size_t index, uint64_t offset, const std::byte* data, uint64_t bytes);
  // Never waits. device: a copy has failed.
  Result<bool> device_copies_done();
  // Waits for copies that were started, and forgets those that were not: when an update is given
  // up, before the memory that they read goes away.
  void abandon();
  // corrupt: a tensor whose digest is not `expected`. Call after the tensor's last byte.
  Status verify(size_t index, const Digest128& expected) const;
  // invalid: names the first tensor that is missing. After this, weights() may be used.
  Status complete();

  // The Hugging Face bytes of a tensor, read back from the backend's memory; `out` has exactly the
  // tensor's size. Waits for the backend. For a complete slot. unsupported: the backend can't;
  // device: it failed.
  Status read_tensor(size_t index, std::span<std::byte> out);

  bool is_complete() const { return complete_; }
  const ModelWeights& weights() const;
  // ---- memory, for an engine that sleeps. Of complete weights; they are not changed.
  Result<SavedWeights> save();
  // Gives the memory back; the bytes of it. The weights can't be used before restore() or begin().
  uint64_t release();
  // exhausted: no room; corrupt: what was uploaded, or `saved`, is not what was saved.
  Status restore(const SavedWeights& saved);

  Digest128 tensor_digest(size_t index) const;  // xxh3-128 of the Hugging Face bytes
  Digest128 digest() const;  // of the whole model: names and tensor digests in table order
  const std::vector<TensorSpec>& table() const { return table_; }

 private:
  void replace_inherited(size_t index);
  Status take_turn(size_t index);
  Status place(const TensorSpec& spec, std::span<const std::byte> bytes);
  // Where the bytes of a tensor go on the device: memory that is reserved first.
  Result<std::byte*> device_place(const TensorSpec& spec);
  Status finish_on_device(size_t index);
  Status reserve_plain(int64_t elements, Buffer& buffer);
  Status reserve_matrix(int64_t out_features, int64_t in_features, LinearWeight& weight);
  Status pack(const TensorView& host, int64_t first_row, int64_t out_features,
              LinearWeight& weight);

  ModelConfig config_;
  Backend& backend_;
  std::vector<TensorSpec> table_;
  ModelWeights weights_;
  std::vector<Digest128> digests_;
  std::vector<bool> whole_;
  std::vector<bool> inherited_;    // whole, but may still come
  std::vector<Digest128> before_;  // of the complete weights before begin(); empty: there were none
  bool is_written_ = false;
  size_t open_index_ = SIZE_MAX;
  std::vector<std::byte> open_bytes_;
  // What append_on_device has taken since device_copies_done() was last true.
  struct DevicePiece {
    size_t index;
    bool is_last;  // of its tensor
  };
  std::vector<DevicePiece> device_pieces_;
  std::vector<DeviceCopy> device_copies_;
  bool copies_started_ = false;
  std::vector<std::vector<Digest128>> chunk_digests_;  // of tensors that come by device
  std::vector<Digest128> tied_digests_;                // of the tied head's chunks, a second copy
  uint64_t open_device_bytes_ = 0;                     // of open_index_, if it comes by device
  bool complete_ = false;
};

// Reads model.safetensors, or the shards of model.safetensors.index.json, into the slot.
// Every tensor of the table must be there, bf16, of the right shape; extra tensors are refused by
// name, but for a tied model's lm_head.weight, which must equal the embedding.
Status load_weights(const std::string& model_directory, WeightSlot& slot);

}  // namespace exact
