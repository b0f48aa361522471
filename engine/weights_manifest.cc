#include "engine/weights_manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/safetensors_header.h"

namespace exact {
namespace {

using Json = nlohmann::json;

constexpr char kFormat[] = "exact-rollout weights 1";

Status wrong(const std::string& what) {
  return {Code::corrupt, "the manifest is not a whole one: " + what};
}

// `object` has exactly these fields.
Status check_fields(const Json& object, std::initializer_list<const char*> names) {
  if (!object.is_object()) return wrong("an object is something else");
  for (const char* name : names) {
    if (!object.contains(name)) return wrong(std::string(name) + " is missing");
  }
  for (const auto& [name, value] : object.items()) {
    if (std::ranges::find(names, name) == names.end()) {
      return wrong("field '" + name.substr(0, 64) + "' is not known");
    }
  }
  return {};
}

Result<std::string> text_of(const Json& object, const char* name) {
  const auto* text = object.at(name).get_ptr<const std::string*>();
  if (text == nullptr) return wrong(std::string(name) + " is not a text");
  return *text;
}

Result<uint64_t> count_of(const Json& object, const char* name) {
  if (!object.at(name).is_number_unsigned()) return wrong(std::string(name) + " is not a count");
  return object.at(name).get<uint64_t>();
}

Result<Digest128> digest_field(const Json& object, const char* name) {
  EXACT_ASSIGN(const std::string text, text_of(object, name));
  const Result<Digest128> digest = Digest128::from_hex(text);
  if (!digest) return wrong(std::string(name) + " is not a digest of 32 hex digits");
  return *digest;
}

Result<StoredTensor> parse_tensor(const Json& object) {
  EXACT_RETURN_IF_ERROR(check_fields(object, {"name", "shape", "digest"}));
  StoredTensor tensor;
  EXACT_ASSIGN(tensor.name, text_of(object, "name"));
  EXACT_ASSIGN(tensor.digest, digest_field(object, "digest"));
  const Json& shape = object.at("shape");
  if (!shape.is_array() || shape.empty() || shape.size() > 2) {
    return wrong("shape of '" + tensor.name + "' has not one dimension or two");
  }
  for (const Json& dimension : shape) {
    if (!dimension.is_number_unsigned() || dimension.get<uint64_t>() == 0 ||
        dimension.get<uint64_t>() > uint64_t{1} << 40) {
      return wrong("shape of '" + tensor.name + "' is not made of positive counts");
    }
    tensor.shape.push_back(dimension.get<int64_t>());
  }
  const auto bytes = safetensors_tensor_bytes("BF16", tensor.shape);
  if (!bytes) return wrong("shape of '" + tensor.name + "' is too large");
  tensor.bytes = *bytes;
  return tensor;
}

Status parse_files(const Json& files, StoredModel& model) {
  if (!files.is_object()) return wrong("files is not an object");
  for (const auto& [name, value] : files.items()) {
    if (std::ranges::find(kStoredFiles, name) == std::end(kStoredFiles)) {
      return wrong("file '" + name.substr(0, 64) + "' is not known");
    }
    EXACT_ASSIGN(const Digest128 digest, digest_field(files, name.c_str()));
    model.files.emplace(name, digest);
  }
  if (!model.files.contains(std::string(kStoredFiles[0]))) return wrong("config.json is missing");
  return {};
}

}  // namespace

StoredTensor stored_tensor(const TensorSpec& spec, const Digest128& digest) {
  std::vector<int64_t> shape{spec.columns};
  if (!spec.is_vector) shape.insert(shape.begin(), spec.rows);
  return {spec.name, std::move(shape), digest, static_cast<uint64_t>(spec.bytes())};
}

Digest128 digest_of(const std::vector<StoredTensor>& tensors) {
  DigestStream stream;
  for (const StoredTensor& tensor : tensors) {
    stream.update(tensor.name + "=" + tensor.digest.to_hex() + "\n");
  }
  return stream.finish();
}

std::string manifest_text(const StoredModel& model) {
  Json json = {{"format", kFormat},
               {"weights_digest", model.weights_digest.to_hex()},
               {"contract_id", model.contract_id},
               {"weight_version", model.weight_version},
               {"stored_us", model.stored_us},
               {"files", Json::object()},
               {"tensors", Json::array()}};
  for (const auto& [name, digest] : model.files) json["files"][name] = digest.to_hex();
  for (const StoredTensor& tensor : model.tensors) {
    json["tensors"].push_back(
        {{"name", tensor.name}, {"shape", tensor.shape}, {"digest", tensor.digest.to_hex()}});
  }
  return json.dump(1) + "\n";
}

Result<StoredModel> parse_manifest(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return wrong("it is not a JSON object");
  if (!json.contains("format")) return wrong("format is missing");
  EXACT_ASSIGN(const std::string format, text_of(json, "format"));
  if (format != kFormat) {
    return Status(Code::unsupported, "the manifest's format is '" + format.substr(0, 64) +
                                         "', not '" + kFormat +
                                         "': read it with the program that wrote it");
  }
  EXACT_RETURN_IF_ERROR(check_fields(json, {"format", "weights_digest", "contract_id",
                                            "weight_version", "stored_us", "files", "tensors"}));
  StoredModel model;
  EXACT_ASSIGN(model.weights_digest, digest_field(json, "weights_digest"));
  EXACT_ASSIGN(const Digest128 contract, digest_field(json, "contract_id"));
  model.contract_id = contract.to_hex();
  EXACT_ASSIGN(model.weight_version, count_of(json, "weight_version"));
  EXACT_ASSIGN(model.stored_us, count_of(json, "stored_us"));
  EXACT_RETURN_IF_ERROR(parse_files(json.at("files"), model));
  if (!json.at("tensors").is_array()) return wrong("tensors is not a list");
  std::set<std::string_view> names;
  for (const Json& object : json.at("tensors")) {
    EXACT_ASSIGN(StoredTensor tensor, parse_tensor(object));
    if (!names.insert(object.at("name").get_ref<const std::string&>()).second) {
      return wrong("tensor '" + tensor.name + "' is there twice");
    }
    model.tensors.push_back(std::move(tensor));
  }
  if (digest_of(model.tensors) != model.weights_digest) {
    return wrong("its tensors have another digest than weights_digest says");
  }
  return model;
}

}  // namespace exact
