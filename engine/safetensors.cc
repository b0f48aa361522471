#include "engine/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "engine/file.h"
#include "engine/safetensors_header.h"

namespace exact {

struct SafetensorsFile::Mapping {
  std::string path;
  void* base = MAP_FAILED;
  size_t size = 0;
  std::map<std::string, SafetensorsEntry, std::less<>> entries;

  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (base != MAP_FAILED) ::munmap(base, size);
  }

  Status map();
  Status parse();
  Status corrupt(const std::string& what) const {
    return {Code::corrupt, "'" + path + "' is not a whole safetensors file: " + what};
  }
};

Status SafetensorsFile::Mapping::map() {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return system_error("open", path);
  Status status;
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) {
    status = system_error("read", path);
  } else if (!S_ISREG(info.st_mode)) {
    status = corrupt("it is not a regular file");
  } else if (info.st_size < 8) {
    status = corrupt("it has fewer than 8 bytes");
  } else {
    size = static_cast<size_t>(info.st_size);
    base = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (base == MAP_FAILED) status = system_error("map", path);
  }
  ::close(descriptor);
  return status;
}

Status SafetensorsFile::Mapping::parse() {
  const auto* bytes = static_cast<const std::byte*>(base);
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; i--) header_bytes = header_bytes << 8 | static_cast<uint64_t>(bytes[i]);
  if (header_bytes > kMaxSafetensorsHeaderBytes || header_bytes > size - 8) {
    return corrupt("its header is said to have " + std::to_string(header_bytes) + " bytes");
  }
  const std::string_view json(reinterpret_cast<const char*>(bytes + 8), header_bytes);
  const std::span<const std::byte> data(bytes + 8 + header_bytes, size - 8 - header_bytes);
  auto header = parse_safetensors_header(json, data.size());
  if (!header.is_ok()) return corrupt(header.status().message());
  for (auto& [name, entry] : *header) {
    entries.emplace(name, SafetensorsEntry{std::move(entry.dtype), std::move(entry.shape),
                                           data.subspan(entry.begin, entry.end - entry.begin)});
  }
  return {};
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  auto mapping = std::make_unique<Mapping>();
  mapping->path = path;
  EXACT_RETURN_IF_ERROR(mapping->map());
  EXACT_RETURN_IF_ERROR(mapping->parse());
  return SafetensorsFile(std::move(mapping));
}

SafetensorsFile::SafetensorsFile(std::unique_ptr<Mapping> mapping) : mapping_(std::move(mapping)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

const std::map<std::string, SafetensorsEntry, std::less<>>& SafetensorsFile::entries() const {
  return mapping_->entries;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = mapping_->entries.find(name);
  return it == mapping_->entries.end() ? nullptr : &it->second;
}

const std::string& SafetensorsFile::path() const {
  return mapping_->path;
}

Status write_safetensors(const std::string& path, std::span<const SafetensorsOutput> tensors) {
  std::vector<SafetensorsDeclaration> declarations;
  for (const SafetensorsOutput& tensor : tensors) {
    declarations.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  EXACT_ASSIGN(const SafetensorsPreamble preamble, make_safetensors_preamble(declarations));
  for (const SafetensorsOutput& tensor : tensors) {
    if (safetensors_tensor_bytes(tensor.dtype, tensor.shape) == tensor.bytes.size()) continue;
    return {Code::invalid, "tensor '" + tensor.name + "': " + std::to_string(tensor.bytes.size()) +
                               " bytes are not those of its shape"};
  }
  EXACT_ASSIGN(AtomicFile file, AtomicFile::create(path));
  EXACT_RETURN_IF_ERROR(file.write(preamble.bytes));
  for (const size_t index : preamble.order) EXACT_RETURN_IF_ERROR(file.write(tensors[index].bytes));
  return file.commit();
}

}  // namespace exact
