// weights_store.cc owns where things lie in a store, and reading them.
#include "engine/weights_store.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "engine/file.h"
#include "engine/safetensors.h"

namespace exact {
namespace {

constexpr size_t kMaxManifestBytes = 256u << 20;
constexpr size_t kMaxConfigBytes = 16u << 20;
constexpr char kFolders[][8] = {"models", "tensors", "configs"};

Status in_file(const Status& status, const std::string& path) {
  return {status.code(), "'" + path + "': " + status.message()};
}

}  // namespace

std::string WeightsStore::model_path(const Digest128& digest) const {
  return directory_ + "/models/" + digest.to_hex() + ".json";
}

std::string WeightsStore::tensor_path(const Digest128& digest) const {
  return directory_ + "/tensors/" + digest.to_hex() + ".safetensors";
}

std::string WeightsStore::config_path(const StoredModel& model) const {
  std::string text;
  for (const auto& [name, digest] : model.files) text += name + "=" + digest.to_hex() + "\n";
  return directory_ + "/configs/" + digest128(text).to_hex();
}

std::string WeightsStore::lock_path() const {
  return directory_ + "/lock";
}

Result<WeightsStore> WeightsStore::open(const std::string& directory) {
  for (const char* folder : kFolders) {
    std::error_code ignored;
    if (std::filesystem::is_directory(directory + "/" + folder, ignored)) continue;
    return Status(Code::not_found,
                  "'" + directory + "' is not a weights store: there is no '" + folder + "' in it");
  }
  return WeightsStore(directory);
}

Result<WeightsStore> WeightsStore::create(const std::string& directory) {
  std::error_code error;
  if (std::filesystem::create_directories(directory, error)) {
    std::filesystem::permissions(directory, std::filesystem::perms::owner_all, error);
  }
  for (const char* folder : kFolders) {
    if (!error) std::filesystem::create_directory(directory + "/" + folder, error);
  }
  if (error) {
    return Status(Code::device,
                  "can't make a weights store of '" + directory + "': " + error.message());
  }
  return open(directory);
}

Result<std::vector<Digest128>> WeightsStore::list() const {
  std::vector<Digest128> digests;
  std::error_code error;
  std::filesystem::directory_iterator entry(directory_ + "/models", error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (entry->path().extension() != ".json") continue;
    const Result<Digest128> digest = Digest128::from_hex(entry->path().stem().string());
    if (digest.is_ok()) digests.push_back(*digest);
  }
  if (error) {
    return Status(Code::device, "can't list '" + directory_ + "/models': " + error.message());
  }
  std::ranges::sort(digests);
  return digests;
}

Result<StoredModel> WeightsStore::manifest(const Digest128& weights_digest) const {
  const std::string path = model_path(weights_digest);
  const Result<std::string> text = read_file(path, kMaxManifestBytes);
  if (!text.is_ok() && text.status().code() == Code::not_found) {
    return Status(Code::not_found, "weights " + weights_digest.to_hex() + " are not in '" +
                                       directory_ + "': rollout weights ls says which are");
  }
  if (!text.is_ok()) return text.status();
  Result<StoredModel> model = parse_manifest(*text);
  if (!model.is_ok()) return in_file(model.status(), path);
  if (model->weights_digest != weights_digest) {
    return Status(Code::corrupt, "'" + path + "' is of weights " + model->weights_digest.to_hex() +
                                     ": its name must be theirs");
  }
  return model;
}

Result<std::string> WeightsStore::config_directory(const StoredModel& model) const {
  const std::string directory = config_path(model);
  for (const auto& [name, digest] : model.files) {
    const std::string path = directory + "/" + name;
    EXACT_ASSIGN(const std::string text, read_file(path, kMaxConfigBytes));
    if (digest128(text) != digest) {
      return Status(Code::corrupt, "'" + path + "' has digest " + digest128(text).to_hex() +
                                       ", not " + digest.to_hex());
    }
  }
  return directory;
}

Status WeightsStore::with_tensor(
    const StoredTensor& tensor,
    const std::function<Status(std::span<const std::byte>)>& use) const {
  const std::string path = tensor_path(tensor.digest);
  EXACT_ASSIGN(const SafetensorsFile file, SafetensorsFile::open(path));
  const SafetensorsEntry* entry = file.find("tensor");
  if (entry == nullptr || entry->dtype != "BF16" || entry->bytes.size() != tensor.bytes ||
      tensor_digest(entry->bytes) != tensor.digest) {
    return {Code::corrupt, "'" + path + "' has not the bytes of tensor '" + tensor.name +
                               "': remove it, and it is written again with the next version "
                               "that has it"};
  }
  return use(entry->bytes);
}

Status WeightsStore::load(const Digest128& weights_digest, WeightSlot& slot) const {
  EXACT_ASSIGN(const StoredModel model, manifest(weights_digest));
  const std::vector<TensorSpec>& table = slot.table();
  bool same = model.tensors.size() == table.size();
  for (size_t i = 0; same && i < table.size(); i++) {
    const StoredTensor wanted = stored_tensor(table[i], {});
    same = model.tensors[i].name == wanted.name && model.tensors[i].shape == wanted.shape;
  }
  if (!same) {
    return {Code::invalid, "weights " + weights_digest.to_hex() + " in '" + directory_ +
                               "' are of another model: their tensors are not those of the config"};
  }
  slot.begin();
  for (size_t i = 0; i < table.size(); i++) {
    // The slot's own digest is the check: a mapped file may change under a reader's hands.
    EXACT_RETURN_IF_ERROR(with_tensor(
        model.tensors[i], [&](std::span<const std::byte> bytes) { return slot.append(i, bytes); }));
    EXACT_RETURN_IF_ERROR(slot.verify(i, model.tensors[i].digest));
  }
  EXACT_RETURN_IF_ERROR(slot.complete());
  EXACT_CHECK(slot.digest() == weights_digest, "a manifest's digest is that of its tensors");
  return {};
}

}  // namespace exact
