// weights_upkeep.cc owns what is done with a store as a whole: checking it, making room in it, and
// giving a version out as a Hugging Face directory.
#include <algorithm>
#include <filesystem>
#include <numeric>
#include <system_error>
#include <utility>

#include "engine/file.h"
#include "engine/safetensors_header.h"
#include "engine/weights_store.h"

namespace exact {
namespace {

struct Models {
  std::vector<StoredModel> whole;
  std::vector<WeightsStore::Problem> broken;
};

Status failed(const std::string& action, const std::string& path, const std::error_code& error) {
  return {Code::device, "can't " + action + " '" + path + "': " + error.message()};
}

struct Removed {
  uint64_t files = 0, bytes = 0, leftover = 0;
};

// Removes what is in a folder, but for what is kept and what is not the store's.
Status sweep(const std::string& folder, const std::string& extension,
             const std::set<std::string>& kept, bool dry_run, Removed& removed) {
  std::error_code error;
  std::vector<std::filesystem::path> paths;
  std::filesystem::directory_iterator entry(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    paths.push_back(entry->path());
  }
  if (error) return failed("list", folder, error);
  for (const std::filesystem::path& path : paths) {
    const bool leftover = path.extension() == ".tmp";
    const bool named =
        path.extension() == extension && Digest128::from_hex(path.stem().string()).is_ok();
    if (!leftover && (!named || kept.contains(path.string()))) continue;
    const uint64_t bytes =
        std::filesystem::is_regular_file(path, error) ? std::filesystem::file_size(path, error) : 0;
    if (!dry_run) std::filesystem::remove_all(path, error);
    if (error) return failed("remove", path.string(), error);
    removed.bytes += bytes;
    (leftover ? removed.leftover : removed.files)++;
  }
  return {};
}

Models read_models(const WeightsStore& store, const std::vector<Digest128>& digests) {
  Models models;
  for (const Digest128& digest : digests) {
    Result<StoredModel> model = store.manifest(digest);
    if (model.is_ok()) {
      models.whole.push_back(std::move(*model));
    } else {
      models.broken.push_back({"models/" + digest.to_hex() + ".json", model.status()});
    }
  }
  return models;
}

}  // namespace

Result<WeightsStore::Verification> WeightsStore::verify(const BytesProgress& progress) const {
  EXACT_ASSIGN(const std::vector<Digest128> digests, list());
  Models models = read_models(*this, digests);
  Verification verification;
  verification.models = digests.size();
  verification.problems = std::move(models.broken);
  std::map<Digest128, StoredTensor> tensors;
  for (const StoredModel& model : models.whole) {
    if (const auto config = config_directory(model); !config.is_ok()) {
      verification.problems.push_back({config_path(model), config.status()});
    }
    for (const StoredTensor& tensor : model.tensors) tensors.emplace(tensor.digest, tensor);
  }
  const int64_t total = std::accumulate(
      tensors.begin(), tensors.end(), int64_t{0},
      [](int64_t sum, const auto& item) { return sum + static_cast<int64_t>(item.second.bytes); });
  for (const auto& [digest, tensor] : tensors) {
    const Status status = with_tensor(tensor, [](std::span<const std::byte>) { return Status(); });
    if (!status.is_ok()) verification.problems.push_back({tensor_path(digest), status});
    verification.tensors++;
    verification.bytes += tensor.bytes;
    if (progress) progress(static_cast<int64_t>(verification.bytes), total);
  }
  return verification;
}

Result<WeightsStore::Collected> WeightsStore::collect_garbage(const CollectOptions& options) {
  EXACT_ASSIGN(const FileLock lock, FileLock::exclusive(lock_path()));
  EXACT_ASSIGN(const std::vector<Digest128> digests, list());
  const Models models = read_models(*this, digests);
  if (!models.broken.empty()) {
    const Status& status = models.broken.front().status;
    return Status(status.code(),
                  status.message() + "; nothing is removed: repair or remove this manifest first");
  }
  const auto latest = std::ranges::max_element(models.whole, {}, &StoredModel::stored_us);
  Collected collected;
  std::set<std::string> kept;
  for (const StoredModel& model : models.whole) {
    const bool stays = model.stored_us >= options.stored_before_us ||
                       options.referenced.contains(model.weights_digest) ||
                       model.weights_digest == latest->weights_digest;
    if (!stays) {
      collected.models.push_back(model.weights_digest);
      continue;
    }
    collected.models_left++;
    kept.insert(model_path(model.weights_digest));
    kept.insert(config_path(model));
    for (const StoredTensor& tensor : model.tensors) kept.insert(tensor_path(tensor.digest));
  }
  // Manifests first: what is cut short leaves tensors that nobody names, never the other way round.
  Removed manifests, tensors, configs;
  const bool dry = options.dry_run;
  EXACT_RETURN_IF_ERROR(sweep(directory_ + "/models", ".json", kept, dry, manifests));
  EXACT_RETURN_IF_ERROR(sweep(directory_ + "/tensors", ".safetensors", kept, dry, tensors));
  EXACT_RETURN_IF_ERROR(sweep(directory_ + "/configs", "", kept, dry, configs));
  collected.tensors = tensors.files;
  collected.bytes = manifests.bytes + tensors.bytes;
  collected.leftover = manifests.leftover + tensors.leftover;
  return collected;
}

Status WeightsStore::export_model(const Digest128& weights_digest, const std::string& directory,
                                  const BytesProgress& progress) const {
  EXACT_ASSIGN(const StoredModel model, manifest(weights_digest));
  EXACT_ASSIGN(const std::string configs, config_directory(model));
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  const bool is_empty = !error && std::filesystem::is_empty(directory, error);
  if (error) return failed("use", directory, error);
  if (!is_empty) return {Code::invalid, "'" + directory + "' is not empty: name a new directory"};

  std::vector<SafetensorsDeclaration> declarations;
  int64_t total = 0, done = 0;
  for (const StoredTensor& tensor : model.tensors) {
    declarations.push_back({tensor.name, "BF16", tensor.shape});
    total += static_cast<int64_t>(tensor.bytes);
  }
  EXACT_ASSIGN(const SafetensorsPreamble preamble, make_safetensors_preamble(declarations));
  EXACT_ASSIGN(AtomicFile file, AtomicFile::create(directory + "/model.safetensors"));
  EXACT_RETURN_IF_ERROR(file.write(preamble.bytes));
  for (const size_t index : preamble.order) {
    const StoredTensor& tensor = model.tensors[index];
    EXACT_RETURN_IF_ERROR(
        with_tensor(tensor, [&](std::span<const std::byte> bytes) { return file.write(bytes); }));
    done += static_cast<int64_t>(tensor.bytes);
    if (progress) progress(done, total);
  }
  EXACT_RETURN_IF_ERROR(file.commit());
  for (const auto& [name, digest] : model.files) {
    EXACT_ASSIGN(const std::string text, read_file(configs + "/" + name, 16u << 20));
    EXACT_ASSIGN(AtomicFile copy, AtomicFile::create(directory + "/" + name));
    EXACT_RETURN_IF_ERROR(copy.write(text));
    EXACT_RETURN_IF_ERROR(copy.commit());
  }
  return {};
}

}  // namespace exact
