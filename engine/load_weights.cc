// load_weights.cc owns the way from a Hugging Face directory to a slot: which file has which
// tensor, and that each is what the table wants.
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "engine/file.h"
#include "engine/safetensors.h"
#include "engine/weights.h"

namespace exact {
namespace {

using Json = nlohmann::json;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = 100u << 20;
constexpr size_t kMaxShards = 4096;

// The opened files of a model, and which of them has which tensor.
struct Checkpoint {
  std::map<std::string, SafetensorsFile> files;            // by name in the directory
  std::map<std::string, std::string, std::less<>> owners;  // tensor -> file
};

std::string in_file(const std::string& name, const SafetensorsFile& file) {
  return "tensor '" + name + "' of '" + file.path() + "'";
}

Status open_shard(const std::string& directory, const std::string& name, Checkpoint& checkpoint) {
  if (checkpoint.files.contains(name)) return {};
  if (checkpoint.files.size() == kMaxShards)
    return {Code::invalid, "the index names too many files"};
  EXACT_ASSIGN(SafetensorsFile file, SafetensorsFile::open(directory + "/" + name));
  checkpoint.files.emplace(name, std::move(file));
  return {};
}

// A name from the index must stay inside the model's directory.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name.front() != '.' && name.size() < 256 &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

Result<Json> read_weight_map(const std::string& path) {
  EXACT_ASSIGN(const std::string text, read_file(path, kMaxIndexBytes));
  Json index = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object()) {
    return Status(Code::corrupt, "'" + path + "' is not JSON with a 'weight_map' object");
  }
  return std::move(*map);
}

Status open_sharded(const std::string& directory, Checkpoint& checkpoint) {
  const std::string path = directory + "/" + kIndexFile;
  EXACT_ASSIGN(const Json weight_map, read_weight_map(path));
  for (const auto& [tensor, value] : weight_map.items()) {
    const auto* name = value.get_ptr<const std::string*>();
    if (name == nullptr || !is_plain_file_name(*name)) {
      return {Code::corrupt,
              "'" + path + "': the file of '" + tensor + "' must be a plain name in its directory"};
    }
    EXACT_RETURN_IF_ERROR(open_shard(directory, *name, checkpoint));
    checkpoint.owners.emplace(tensor, *name);
  }
  for (const auto& [name, file] : checkpoint.files) {
    for (const auto& [tensor, entry] : file.entries()) {
      const auto owner = checkpoint.owners.find(tensor);
      if (owner != checkpoint.owners.end() && owner->second == name) continue;
      return {Code::corrupt, in_file(tensor, file) + " is not in the index as that file's"};
    }
  }
  return {};
}

Result<Checkpoint> open_checkpoint(const std::string& directory) {
  Checkpoint checkpoint;
  std::error_code ignored;
  if (std::filesystem::exists(directory + "/" + kSingleFile, ignored)) {
    EXACT_RETURN_IF_ERROR(open_shard(directory, kSingleFile, checkpoint));
    for (const auto& [tensor, entry] : checkpoint.files.at(kSingleFile).entries()) {
      checkpoint.owners.emplace(tensor, kSingleFile);
    }
  } else if (std::filesystem::exists(directory + "/" + kIndexFile, ignored)) {
    EXACT_RETURN_IF_ERROR(open_sharded(directory, checkpoint));
  } else {
    return Status(Code::not_found, "'" + directory + "' has neither " + kSingleFile + " nor " +
                                       kIndexFile + ": give a Hugging Face directory");
  }
  return checkpoint;
}

// The checked bytes of one tensor.
Result<std::span<const std::byte>> tensor_bytes(const Checkpoint& checkpoint,
                                                const TensorSpec& spec,
                                                const std::string& directory) {
  const auto owner = checkpoint.owners.find(spec.name);
  if (owner == checkpoint.owners.end()) {
    return Status(Code::not_found, "tensor '" + spec.name + "' is not in '" + directory +
                                       "', though its config.json asks for it");
  }
  const SafetensorsFile& file = checkpoint.files.at(owner->second);
  const SafetensorsEntry* entry = file.find(spec.name);
  if (entry == nullptr) {
    return Status(Code::corrupt,
                  in_file(spec.name, file) + " is not there, though the index says so");
  }
  if (entry->dtype != "BF16") {
    return Status(Code::unsupported, in_file(spec.name, file) + " is " +
                                         entry->dtype.substr(0, 20) +
                                         ": only BF16 weights are inside the contract");
  }
  const std::vector<int64_t> shape = spec.is_vector ? std::vector<int64_t>{spec.columns}
                                                    : std::vector<int64_t>{spec.rows, spec.columns};
  if (entry->shape != shape) {
    return Status(Code::invalid, in_file(spec.name, file) + " has shape " +
                                     Json(entry->shape).dump() + ", the config wants " +
                                     Json(shape).dump());
  }
  return entry->bytes;
}

// A tied model may carry lm_head.weight if it is the embedding; nothing else may be left over.
Status check_extra(const Checkpoint& checkpoint, const std::vector<TensorSpec>& table) {
  std::map<std::string_view, const TensorSpec*> known;
  for (const TensorSpec& spec : table) known.emplace(spec.name, &spec);
  for (const auto& [tensor, owner] : checkpoint.owners) {
    if (known.contains(tensor)) continue;
    const SafetensorsFile& file = checkpoint.files.at(owner);
    if (tensor != "lm_head.weight") {
      return {Code::invalid, in_file(tensor, file) + " is not part of the config's model"};
    }
    const SafetensorsEntry* head = file.find(tensor);
    const TensorSpec& embedding = table.front();
    const SafetensorsFile& other = checkpoint.files.at(checkpoint.owners.at(embedding.name));
    const SafetensorsEntry* embedded = other.find(embedding.name);
    if (head == nullptr || head->dtype != embedded->dtype || head->shape != embedded->shape ||
        std::memcmp(head->bytes.data(), embedded->bytes.data(), head->bytes.size()) != 0) {
      return {Code::invalid,
              in_file(tensor, file) + " differs from the embedding, though the config ties them"};
    }
  }
  return {};
}

}  // namespace

Status load_weights(const std::string& model_directory, WeightSlot& slot) {
  slot.begin();
  EXACT_ASSIGN(const Checkpoint checkpoint, open_checkpoint(model_directory));
  const std::vector<TensorSpec>& table = slot.table();
  // All is checked before the first byte is moved.
  for (const TensorSpec& spec : table) {
    EXACT_RETURN_IF_ERROR(tensor_bytes(checkpoint, spec, model_directory).status());
  }
  EXACT_RETURN_IF_ERROR(check_extra(checkpoint, table));
  for (size_t index = 0; index < table.size(); index++) {
    EXACT_ASSIGN(const auto bytes, tensor_bytes(checkpoint, table[index], model_directory));
    EXACT_RETURN_IF_ERROR(slot.append(index, bytes));
  }
  return slot.complete();
}

}  // namespace exact
