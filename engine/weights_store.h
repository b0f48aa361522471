// weights_store.h owns a directory that keeps versions of weights. A tensor is there once, under
// its digest, however many versions have it; a version is a manifest that names its tensors. A file
// gets its name when it is whole, the manifest last: a version is there completely or not at all.
//
//   DIRECTORY/models/<weights digest>.json     the manifest (weights_manifest.h)
//   DIRECTORY/tensors/<digest>.safetensors     one tensor "tensor", BF16, of one dimension
//   DIRECTORY/configs/<digest>/config.json     and generation_config.json; the digest is of both
//   DIRECTORY/lock                             shared by who writes, alone for collect_garbage
//
// What is read is checked: nothing is taken for weights that has another digest than it should.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/file_lock.h"
#include "engine/weights.h"
#include "engine/weights_manifest.h"
#include "kernels/base/digest.h"
#include "kernels/base/result.h"

namespace exact {

// Bytes done and bytes in all.
using BytesProgress = std::function<void(int64_t, int64_t)>;

class WeightsStore {
 public:
  // not_found: there is no store in this directory.
  static Result<WeightsStore> open(const std::string& directory);
  // As open; makes the store, readable by its owner alone, where there is none. device: it can't.
  static Result<WeightsStore> create(const std::string& directory);

  const std::string& directory() const { return directory_; }

  // ---- reading
  // The digests of all versions, by their files' names, in ascending order.
  Result<std::vector<Digest128>> list() const;
  // not_found: no such version; corrupt: its manifest, by what is wrong.
  Result<StoredModel> manifest(const Digest128& weights_digest) const;
  // Where the version's config.json lies, checked: for load_config. corrupt, not_found.
  Result<std::string> config_directory(const StoredModel& model) const;
  // Fills the slot with a version, and completes it. Every tensor's digest and the version's are
  // checked. not_found: the version or one of its tensors; invalid: it is of another model than the
  // slot's; corrupt: names tensor and file.
  Status load(const Digest128& weights_digest, WeightSlot& slot) const;
  // Writes a Hugging Face directory: model.safetensors, then its config. invalid: the directory is
  // there and not empty; else as load().
  Status export_model(const Digest128& weights_digest, const std::string& directory,
                      const BytesProgress& progress) const;

  // ---- keeping house
  struct Problem {
    std::string file;
    Status status;
  };
  struct Verification {
    uint64_t models = 0, tensors = 0, bytes = 0;  // read; a tensor once
    std::vector<Problem> problems;
  };
  // Reads everything that a manifest names. An error: the directory can't be read at all.
  Result<Verification> verify(const BytesProgress& progress) const;

  struct CollectOptions {
    uint64_t stored_before_us = 0;   // versions stored earlier may go
    std::set<Digest128> referenced;  // these stay; so does the version that was stored last
    bool dry_run = false;            // only say what would go
  };
  struct Collected {
    std::vector<Digest128> models;                  // that went, ascending
    uint64_t tensors = 0, bytes = 0, leftover = 0;  // leftover: files that were never finished
    uint64_t models_left = 0;
  };
  // Removes versions, then tensors and configs that no version is left to name. exhausted: somebody
  // is writing; corrupt: a manifest can't be read, so what it names is not known: nothing goes.
  Result<Collected> collect_garbage(const CollectOptions& options);

 private:
  friend class WeightsWriter;
  explicit WeightsStore(std::string directory) : directory_(std::move(directory)) {}
  std::string model_path(const Digest128& digest) const;
  std::string tensor_path(const Digest128& digest) const;
  std::string config_path(const StoredModel& model) const;
  std::string lock_path() const;
  // Calls `use` with the checked bytes.
  Status with_tensor(const StoredTensor& tensor,
                     const std::function<Status(std::span<const std::byte>)>& use) const;

  std::string directory_;
};

// Writes one version. Nothing is collected while it lives. One thread; several processes may write
// into one store.
class WeightsWriter {
 public:
  // Waits while garbage is collected.
  static Result<WeightsWriter> begin(const WeightsStore& store);

  // Whether a tensor is there, by name and size: its digest is looked at when it is read.
  bool has(const StoredTensor& tensor) const;
  // Keeps a tensor; writes nothing if it is there. corrupt: the bytes are others than said.
  Status put(const StoredTensor& tensor, std::span<const std::byte> bytes);
  // Keeps config.json and generation_config.json of a model's directory; fills `model.files`.
  Status put_config(const std::string& model_directory, StoredModel& model);
  // The version is there from now on. All of its tensors and its config must be.
  Status finish(const StoredModel& model);

  uint64_t bytes_written() const { return bytes_written_; }  // of tensors

 private:
  WeightsWriter(const WeightsStore& store, FileLock lock) : store_(store), lock_(std::move(lock)) {}

  WeightsStore store_;
  FileLock lock_;
  uint64_t bytes_written_ = 0;
};

// All that a store says of a complete slot but files, version and time.
StoredModel describe_weights(const WeightSlot& slot, const ModelConfig& config);

// Reads a complete slot back and keeps it: for who may wait for it. `version` and `now_us` are
// what the manifest says.
Status store_weights(const WeightsStore& store, WeightSlot& slot, const ModelConfig& config,
                     const std::string& model_directory, uint64_t version, uint64_t now_us);

}  // namespace exact
