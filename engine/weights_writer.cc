// weights_writer.cc owns writing into a store: each file under a name of its own, then renamed.
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <system_error>
#include <utility>

#include "engine/file.h"
#include "engine/safetensors.h"
#include "engine/safetensors_header.h"
#include "engine/weights_store.h"

namespace exact {
namespace {

constexpr size_t kMaxConfigBytes = 16u << 20;

// Two writers of one tensor must not write into one file.
std::string own_suffix() {
  static std::atomic<uint64_t> count{0};
  return "." + std::to_string(::getpid()) + "." + std::to_string(count++) + ".tmp";
}

Status write_whole(const std::string& path, std::string_view head,
                   std::span<const std::byte> body) {
  EXACT_ASSIGN(AtomicFile file, AtomicFile::create(path, own_suffix()));
  EXACT_RETURN_IF_ERROR(file.write(head));
  EXACT_RETURN_IF_ERROR(file.write(body));
  return file.commit();
}

Result<SafetensorsPreamble> preamble_of(uint64_t bytes) {
  const SafetensorsDeclaration declaration{"tensor", "BF16", {static_cast<int64_t>(bytes / 2)}};
  return make_safetensors_preamble({&declaration, 1});
}

}  // namespace

Result<WeightsWriter> WeightsWriter::begin(const WeightsStore& store) {
  EXACT_ASSIGN(FileLock lock, FileLock::shared(store.lock_path()));
  return WeightsWriter(store, std::move(lock));
}

bool WeightsWriter::has(const StoredTensor& tensor) const {
  const Result<SafetensorsPreamble> preamble = preamble_of(tensor.bytes);
  std::error_code error;
  const auto size = std::filesystem::file_size(store_.tensor_path(tensor.digest), error);
  return !error && preamble.is_ok() && size == preamble->bytes.size() + tensor.bytes;
}

Status WeightsWriter::put(const StoredTensor& tensor, std::span<const std::byte> bytes) {
  if (has(tensor)) return {};
  if (bytes.size() != tensor.bytes || tensor_digest(bytes) != tensor.digest) {
    return {Code::corrupt, "tensor '" + tensor.name + "' has digest " +
                               tensor_digest(bytes).to_hex() + ", not " + tensor.digest.to_hex() +
                               ": it was not read as it was received"};
  }
  EXACT_ASSIGN(const SafetensorsPreamble preamble, preamble_of(tensor.bytes));
  EXACT_RETURN_IF_ERROR(write_whole(store_.tensor_path(tensor.digest), preamble.bytes, bytes));
  bytes_written_ += tensor.bytes;
  return {};
}

Status WeightsWriter::put_config(const std::string& model_directory, StoredModel& model) {
  std::map<std::string, std::string> texts;
  model.files.clear();
  for (const std::string_view view : kStoredFiles) {
    const std::string name(view);
    const auto text = read_file(model_directory + "/" + name, kMaxConfigBytes);
    if (!text.is_ok() && text.status().code() == Code::not_found && name != kStoredFiles[0]) {
      continue;
    }
    if (!text.is_ok()) return text.status();
    model.files[name] = digest128(*text);
    texts[name] = *text;
  }
  const std::string directory = store_.config_path(model);
  std::error_code error;
  std::filesystem::create_directory(directory, error);
  if (error) return {Code::device, "can't make '" + directory + "': " + error.message()};
  if (store_.config_directory(model).is_ok()) return {};
  for (const auto& [name, text] : texts) {
    EXACT_RETURN_IF_ERROR(write_whole(directory + "/" + name, text, {}));
  }
  return {};
}

Status WeightsWriter::finish(const StoredModel& model) {
  EXACT_CHECK(digest_of(model.tensors) == model.weights_digest, "a version of other tensors");
  EXACT_RETURN_IF_ERROR(store_.config_directory(model).status());
  for (const StoredTensor& tensor : model.tensors) {
    if (has(tensor)) continue;
    return {Code::not_found, "tensor '" + tensor.name + "' is not in '" + store_.directory() +
                                 "' any more: the version is not stored"};
  }
  return write_whole(store_.model_path(model.weights_digest), manifest_text(model), {});
}

StoredModel describe_weights(const WeightSlot& slot, const ModelConfig& config) {
  StoredModel model;
  model.weights_digest = slot.digest();
  model.contract_id = contract_id(config).to_hex();
  const std::vector<TensorSpec>& table = slot.table();
  for (size_t i = 0; i < table.size(); i++) {
    model.tensors.push_back(stored_tensor(table[i], slot.tensor_digest(i)));
  }
  return model;
}

Status store_weights(const WeightsStore& store, WeightSlot& slot, const ModelConfig& config,
                     const std::string& model_directory, uint64_t version, uint64_t now_us) {
  StoredModel model = describe_weights(slot, config);
  model.weight_version = version;
  model.stored_us = now_us;
  EXACT_ASSIGN(WeightsWriter writer, WeightsWriter::begin(store));
  EXACT_RETURN_IF_ERROR(writer.put_config(model_directory, model));
  std::vector<std::byte> bytes;
  for (size_t i = 0; i < model.tensors.size(); i++) {
    if (writer.has(model.tensors[i])) continue;
    bytes.resize(model.tensors[i].bytes);
    EXACT_RETURN_IF_ERROR(slot.read_tensor(i, bytes));
    EXACT_RETURN_IF_ERROR(writer.put(model.tensors[i], bytes));
  }
  return writer.finish(model);
}

}  // namespace exact
