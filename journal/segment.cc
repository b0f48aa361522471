#include "journal/segment.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <system_error>

namespace exact::journal {
namespace {

namespace fs = std::filesystem;
constexpr size_t kDigits = 20;
constexpr std::string_view kSuffix = ".exj";

std::optional<uint64_t> first_id_of(std::string_view name) {
  if (name.size() != kDigits + kSuffix.size() || !name.ends_with(kSuffix)) return std::nullopt;
  uint64_t id = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + kDigits, id);
  if (error != std::errc() || end != name.data() + kDigits) return std::nullopt;
  return id;
}

}  // namespace

std::string segment_name(uint64_t first_id) {
  const std::string digits = std::to_string(first_id);
  return std::string(kDigits - digits.size(), '0') + digits + std::string(kSuffix);
}

Result<std::vector<Segment>> list_segments(const std::string& directory) {
  std::vector<Segment> segments;
  std::error_code error;
  fs::directory_iterator it(directory, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    const std::optional<uint64_t> first_id = first_id_of(name);
    std::error_code unreadable;
    if (!first_id || !it->is_regular_file(unreadable)) continue;
    const uint64_t bytes = it->file_size(unreadable);
    if (unreadable) continue;  // removed just now
    segments.push_back({it->path().string(), *first_id, bytes});
  }
  if (error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory) {
    return Status(Code::not_found, "no directory " + directory);
  }
  if (error) return Status(Code::device, "can't list " + directory + ": " + error.message());
  std::sort(segments.begin(), segments.end(),
            [](const Segment& a, const Segment& b) { return a.first_id < b.first_id; });
  return segments;
}

}  // namespace exact::journal
