#include "worker/partial_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "engine/file.h"
#include "kernels/base/digest.h"

namespace exact::worker {
namespace {

using Json = nlohmann::json;

constexpr const char* kKind = "exact-rollout partial generation 1";
constexpr size_t kShownBytes = 64;  // of a fact, in a sentence

// Of a line: whose it is, and its text.
std::string checksum(uint64_t prompt, uint64_t sample, std::string_view text) {
  const std::string line = fmt::format("{} {} {}", prompt, sample, text);
  return fmt::format("{:016x}", digest64(std::as_bytes(std::span(line))));
}

// One line: a kind, the facts, and a digest of both.
std::string header_of(const RunFacts& facts) {
  Json object = Json::object();
  for (const auto& [name, value] : facts) object[name] = value;
  const std::string text = object.dump(-1, ' ', true, Json::error_handler_t::replace);
  return Json{{"kind", kKind}, {"facts", object}, {"digest", digest128(text).to_hex()}}.dump(
             -1, ' ', true, Json::error_handler_t::replace) +
         "\n";
}

std::string shown(const std::string& value) {
  return value.size() <= kShownBytes ? value : value.substr(0, kShownBytes) + "...";
}

// What to do about a file that is not this run's.
std::string ways_out(const std::string& path) {
  return fmt::format(
      "; go on as it was begun, write to another --out, or throw '{}' away and begin anew with "
      "--restart",
      path);
}

// Why a header that is not ours belongs to another run.
Status of_another_run(const std::string& path, std::string_view header, const RunFacts& facts) {
  const Json json = Json::parse(header, nullptr, false);
  const auto kind = json.is_object() ? json.find("kind") : json.end();
  if (json.is_discarded() || !json.is_object() || kind == json.end() || *kind != kKind ||
      !json.contains("facts") || !json["facts"].is_object()) {
    return Status(Code::invalid, fmt::format("'{}' is not what an unfinished run of this release "
                                             "leaves",
                                             path) +
                                     ways_out(path));
  }
  for (const auto& [name, value] : facts) {
    const Json& theirs = json["facts"];
    const auto found = theirs.find(name);
    const std::string other =
        found != theirs.end() && found->is_string() ? found->get<std::string>() : "not there";
    if (other == value) continue;
    return Status(Code::invalid,
                  fmt::format("'{}' was begun with another {}: it was {}, now it is {}", path, name,
                              shown(other), shown(value)) +
                      ways_out(path));
  }
  return Status(Code::invalid,
                fmt::format("'{}' is damaged in its first line", path) + ways_out(path));
}

// The number at the start of `text`, and the space after it, are taken off.
std::optional<uint64_t> take_number(std::string_view& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end == text.data() + text.size() || *end != ' ') return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()) + 1);
  return value;
}

}  // namespace

PartialFile::PartialFile(std::string out, ipc::FileDescriptor file,
                         const std::vector<int32_t>& samples)
    : out_(std::move(out)), file_(std::move(file)), samples_(samples), left_(samples) {
  size_t lines = 0;
  for (const int32_t count : samples) {
    first_line_.push_back(lines);
    lines += static_cast<size_t>(count);
  }
  lines_.resize(lines);
}

Result<PartialFile> PartialFile::open(const std::string& out, const RunFacts& facts,
                                      const std::vector<int32_t>& samples, bool restart) {
  const std::string path = out + ".partial";
  ipc::FileDescriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!file.is_open()) {
    return Status(Code::device, "'" + path + "' can't be written (" + ipc::os_error_text(errno) +
                                    "): does its folder exist?");
  }
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    return Status(Code::invalid, "another process writes '" + path +
                                     "': wait until it is done, or write to another --out");
  }
  PartialFile partial(out, std::move(file), samples);
  const std::string header = header_of(facts);
  if (restart) {
    EXACT_RETURN_IF_ERROR(partial.begin(header));
  } else {
    EXACT_RETURN_IF_ERROR(partial.load(header, facts));
  }
  return partial;
}

Status PartialFile::begin(const std::string& header) {
  if (::ftruncate(file_.get(), 0) != 0) return system_error("empty", path());
  end_ = 0;
  return write(header);
}

Status PartialFile::load(const std::string& header, const RunFacts& facts) {
  std::ifstream file(path(), std::ios::binary);
  std::string line;
  // A line that the end of the file ends was torn.
  const auto next = [&] { return std::getline(file, line) && !file.eof(); };
  if (!next()) return begin(header);
  if (line + "\n" != header) return of_another_run(path(), line, facts);
  end_ = static_cast<int64_t>(header.size());
  while (next() && take_line(line, end_)) end_ += static_cast<int64_t>(line.size()) + 1;
  if (file.bad()) return system_error("read", path());
  if (::ftruncate(file_.get(), end_) != 0) return system_error("cut", path());
  resumed_ = static_cast<size_t>(std::count(left_.begin(), left_.end(), 0));
  return {};
}

bool PartialFile::take_line(std::string_view line, int64_t offset) {
  std::string_view rest = line;
  const auto prompt = take_number(rest);
  const auto sample = prompt ? take_number(rest) : std::nullopt;
  constexpr size_t kChecksum = 16;
  if (!sample || rest.size() < kChecksum + 1 || rest[kChecksum] != ' ') return false;
  const std::string_view text = rest.substr(kChecksum + 1);
  if (rest.substr(0, kChecksum) != checksum(*prompt, *sample, text)) return false;
  if (*prompt >= samples_.size() || *sample >= static_cast<uint64_t>(samples_[*prompt])) {
    return false;
  }
  keep(static_cast<size_t>(*prompt), static_cast<int32_t>(*sample),
       {offset + static_cast<int64_t>(line.size() - text.size()),
        static_cast<int64_t>(text.size())});
  return true;
}

void PartialFile::keep(size_t prompt, int32_t sample, const Line& line) {
  Line& place = line_of(prompt, sample);
  if (place.offset < 0) left_[prompt]--;
  place = line;
}

Status PartialFile::append(size_t prompt, int32_t sample, std::string_view text) {
  EXACT_CHECK(prompt < samples_.size() && sample >= 0 && sample < samples_[prompt],
              "a sample that nobody asked for");
  if (line_of(prompt, sample).offset >= 0) return {};
  const std::string front = fmt::format("{} {} {} ", prompt, sample,
                                        checksum(prompt, static_cast<uint64_t>(sample), text));
  const Line line{end_ + static_cast<int64_t>(front.size()), static_cast<int64_t>(text.size())};
  EXACT_RETURN_IF_ERROR(write(front + std::string(text) + "\n"));
  keep(prompt, sample, line);
  return {};
}

Status PartialFile::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::pwrite(file_.get(), text.data(), text.size(), end_);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return system_error("write", path());
    end_ += count;
    text.remove_prefix(static_cast<size_t>(count));
  }
  return {};
}

Status PartialFile::finish() {
  EXACT_ASSIGN(AtomicFile out, AtomicFile::create(out_));
  constexpr size_t kBlockBytes = 1 << 20;
  std::string block, text;
  for (const Line& line : lines_) {
    EXACT_CHECK(line.offset >= 0, "an output with a sample missing");
    text.resize(static_cast<size_t>(line.bytes));
    size_t read = 0;
    while (read < text.size()) {
      const ssize_t count = ::pread(file_.get(), text.data() + read, text.size() - read,
                                    line.offset + static_cast<int64_t>(read));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return system_error("read", path());
      read += static_cast<size_t>(count);
    }
    block += text;
    block += '\n';
    if (block.size() < kBlockBytes) continue;
    EXACT_RETURN_IF_ERROR(out.write(std::string_view(block)));
    block.clear();
  }
  EXACT_RETURN_IF_ERROR(out.write(std::string_view(block)));
  EXACT_RETURN_IF_ERROR(out.commit());
  if (::unlink(path().c_str()) != 0) return system_error("remove", path());
  return {};
}

}  // namespace exact::worker
