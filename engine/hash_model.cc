#include "engine/hash_model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "engine/file.h"
#include "engine/safetensors_header.h"
#include "kernels/base/digest.h"
#include "kernels/contract/hash_init.h"

namespace exact {
namespace {

using Json = nlohmann::json;

constexpr char kMarkerFile[] = "make_model.json";
constexpr size_t kMaxConfigBytes = 16u << 20;
constexpr size_t kMaxMarkerBytes = 1u << 16;
constexpr size_t kElementsPerThread = size_t{1} << 19;
constexpr size_t kMaxThreads = 16;

struct Range {
  double low = 0, high = 0;
};

Range hash_range(const TensorSpec& spec, const ModelConfig& config) {
  if (spec.is_vector) {
    const bool is_norm = spec.name.find("norm") != std::string::npos;
    return is_norm ? Range{0.75, 1.25} : Range{-0.5, 0.5};
  }
  if (spec.role == TensorRole::embedding && !config.tied_embeddings) return {-1.0, 1.0};
  const double bound = std::sqrt(3.0 / static_cast<double>(spec.columns));
  return {-bound, bound};
}

// A file of the model: consecutive tensors of the table.
struct Shard {
  std::string name;
  std::vector<const TensorSpec*> tensors;
};

std::vector<Shard> plan_shards(const std::vector<TensorSpec>& table, int64_t max_bytes) {
  std::vector<Shard> shards(1);
  int64_t bytes = 0;
  for (const TensorSpec& spec : table) {
    if (!shards.back().tensors.empty() && spec.bytes() > max_bytes - bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().tensors.push_back(&spec);
    bytes += spec.bytes();
  }
  if (shards.size() == 1) {
    shards[0].name = "model.safetensors";
    return shards;
  }
  for (size_t i = 0; i < shards.size(); i++) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    shards[i].name = name;
  }
  return shards;
}

std::string index_text(const std::vector<Shard>& shards, int64_t bytes) {
  Json index;
  index["metadata"]["total_size"] = bytes;
  for (const Shard& shard : shards) {
    for (const TensorSpec* spec : shard.tensors) index["weight_map"][spec->name] = shard.name;
  }
  return index.dump(2) + "\n";
}

std::string marker_text(const std::string& config_text, const HashModelOptions& options) {
  const Json marker = {{"made_by", "rollout make-model"},
                       {"seed", options.seed},
                       {"config_xxh3_128", digest128(config_text).to_hex()},
                       {"max_shard_bytes", options.max_shard_bytes}};
  return marker.dump(2) + "\n";
}

// An empty directory, or the output of an earlier run with the same arguments.
Status claim_directory(const std::string& directory, const std::string& marker) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  const bool is_empty = !error && std::filesystem::is_empty(directory, error);
  if (error) {
    return {Code::device, "can't use '" + directory + "' as a directory: " + error.message()};
  }
  if (is_empty) return {};
  const auto found = read_file(directory + "/" + kMarkerFile, kMaxMarkerBytes);
  if (found.is_ok() && *found == marker) return {};
  return {Code::invalid, "'" + directory + "' holds " +
                             (found.is_ok() ? "a model made with another config, seed or shard size"
                                            : "files that make-model did not write") +
                             ": choose an empty directory"};
}

Status write_text(const std::string& path, const std::string& text) {
  EXACT_ASSIGN(AtomicFile file, AtomicFile::create(path));
  EXACT_RETURN_IF_ERROR(file.write(text));
  return file.commit();
}

// Holds one tensor in memory at a time.
Status write_shard(const std::string& directory, const Shard& shard, const ModelConfig& config,
                   const HashModelOptions& options, const std::function<void(int64_t)>& wrote) {
  std::vector<SafetensorsDeclaration> declarations;
  for (const TensorSpec* spec : shard.tensors) {
    std::vector<int64_t> shape{spec->columns};
    if (!spec->is_vector) shape.insert(shape.begin(), spec->rows);
    declarations.push_back({spec->name, "BF16", std::move(shape)});
  }
  EXACT_ASSIGN(const SafetensorsPreamble preamble, make_safetensors_preamble(declarations));
  EXACT_ASSIGN(AtomicFile file, AtomicFile::create(directory + "/" + shard.name));
  EXACT_RETURN_IF_ERROR(file.write(preamble.bytes));
  std::vector<uint16_t> values;
  for (const size_t index : preamble.order) {
    const TensorSpec& spec = *shard.tensors[index];
    values.resize(static_cast<size_t>(spec.rows * spec.columns));
    hash_tensor(spec, config, options.seed, values);
    EXACT_RETURN_IF_ERROR(file.write(std::as_bytes(std::span(values))));
    wrote(spec.bytes());
  }
  return file.commit();
}

}  // namespace

void hash_tensor(const TensorSpec& spec, const ModelConfig& config, uint64_t seed,
                 std::span<uint16_t> out) {
  EXACT_CHECK(out.size() == static_cast<size_t>(spec.rows * spec.columns), "a tensor of its shape");
  const contract::HashStream stream(spec.name, seed);
  const Range range = hash_range(spec, config);
  const auto fill = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) out[i] = stream.uniform_bf16(i, range.low, range.high);
  };
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  const size_t parts =
      std::clamp(out.size() / kElementsPerThread, size_t{1}, std::min(cores, kMaxThreads));
  std::vector<std::jthread> threads;
  for (size_t part = 1; part < parts; part++) {
    threads.emplace_back(fill, out.size() * part / parts, out.size() * (part + 1) / parts);
  }
  fill(0, out.size() / parts);
}

Status make_model(const std::string& config_path, const std::string& out_directory,
                  const HashModelOptions& options) {
  if (options.max_shard_bytes < 1) return {Code::invalid, "max_shard_bytes must be positive"};
  EXACT_ASSIGN(const std::string config_text, read_file(config_path, kMaxConfigBytes));
  auto config = parse_config(config_text);
  if (!config.is_ok()) {
    return {config.status().code(), "'" + config_path + "': " + config.status().message()};
  }
  const std::vector<TensorSpec> table = tensor_table(*config);
  const int64_t bytes_total = total_bytes(table);
  const std::vector<Shard> shards = plan_shards(table, options.max_shard_bytes);
  const std::string marker = marker_text(config_text, options);
  EXACT_RETURN_IF_ERROR(claim_directory(out_directory, marker));

  // The marker comes first, so that a run that was cut short can be repeated; config.json comes
  // last, so that nothing takes half a model for a model.
  EXACT_RETURN_IF_ERROR(write_text(out_directory + "/" + kMarkerFile, marker));
  int64_t bytes_done = 0;
  const auto wrote = [&](int64_t bytes) {
    bytes_done += bytes;
    if (options.progress) options.progress(bytes_done, bytes_total);
  };
  for (const Shard& shard : shards) {
    EXACT_RETURN_IF_ERROR(write_shard(out_directory, shard, *config, options, wrote));
  }
  if (shards.size() > 1) {
    EXACT_RETURN_IF_ERROR(write_text(out_directory + "/model.safetensors.index.json",
                                     index_text(shards, bytes_total)));
  }
  return write_text(out_directory + "/config.json", config_text);
}

}  // namespace exact
