#include "trainer_bridge/host_tensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <span>
#include <system_error>
#include <utility>

#include "engine/safetensors.h"
#include "engine/tensor_table.h"

namespace exact::bridge {
namespace {

Result<std::vector<SafetensorsFile>> open_all(const std::string& directory) {
  std::vector<std::string> paths;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".safetensors") paths.push_back(entry->path().string());
  }
  if (error) {
    return Status(Code::not_found, "can't read directory '" + directory + "': " + error.message());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<SafetensorsFile> files;
  for (const std::string& path : paths) {
    EXACT_ASSIGN(auto file, SafetensorsFile::open(path));
    files.push_back(std::move(file));
  }
  return files;
}

Result<HostTensor> read_tensor(const TensorSpec& spec, std::span<const SafetensorsFile> files,
                               const std::string& directory) {
  const std::string label = "tensor '" + spec.name + "' of '" + directory + "'";
  const SafetensorsEntry* entry = nullptr;
  for (const SafetensorsFile& file : files) {
    const SafetensorsEntry* found = file.find(spec.name);
    if (found == nullptr) continue;
    if (entry != nullptr) return Status(Code::corrupt, label + " is in two files: remove one");
    entry = found;
  }
  if (entry == nullptr) return Status(Code::not_found, label + " is in none of its files");
  HostTensor tensor;
  tensor.name = spec.name;
  tensor.shape = {spec.rows, spec.columns};
  if (spec.is_vector) tensor.shape = {spec.columns};
  if (entry->dtype != "BF16" || entry->shape != tensor.shape) {
    return Status(Code::corrupt, label + " must be BF16, " + std::to_string(spec.rows) + " x " +
                                     std::to_string(spec.columns));
  }
  tensor.values.resize(static_cast<size_t>(spec.rows * spec.columns));
  EXACT_CHECK(entry->bytes.size() == tensor.values.size() * sizeof(uint16_t),
              "a safetensors entry of another size than its shape");
  std::memcpy(tensor.values.data(), entry->bytes.data(), entry->bytes.size());
  return tensor;
}

}  // namespace

Result<std::vector<HostTensor>> load_host_tensors(const ModelConfig& config,
                                                  const std::string& model_directory) {
  EXACT_ASSIGN(const auto files, open_all(model_directory));
  std::vector<HostTensor> tensors;
  for (const TensorSpec& spec : tensor_table(config)) {
    EXACT_ASSIGN(auto tensor, read_tensor(spec, files, model_directory));
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

std::vector<NamedTensor> named_tensors(const std::vector<HostTensor>& tensors) {
  std::vector<NamedTensor> views;
  views.reserve(tensors.size());
  for (const HostTensor& tensor : tensors) {
    views.push_back({tensor.name, tensor.shape, std::as_bytes(std::span(tensor.values))});
  }
  return views;
}

}  // namespace exact::bridge
