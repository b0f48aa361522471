#include "journal/journal_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "journal/record_codec.h"
#include "journal/segment_reader.h"

namespace exact::journal {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

Status os_error(const std::string& what) {
  const Code code = errno == ENOSPC || errno == EDQUOT ? Code::exhausted : Code::device;
  return Status(code, what + ": " + ipc::os_error_text(errno));
}

Status write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(fd, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return os_error("can't write " + path);
    bytes.remove_prefix(static_cast<size_t>(wrote));
  }
  return {};
}

Result<ipc::FileDescriptor> open_file(const std::string& path, int flags) {
  ipc::FileDescriptor file(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.is_open()) return os_error("can't open " + path);
  return file;
}

Result<ipc::FileDescriptor> lock_directory(const std::string& directory) {
  EXACT_ASSIGN(ipc::FileDescriptor lock, open_file(directory + "/lock", O_RDWR | O_CREAT));
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) return os_error("can't lock " + directory);
    return Status(Code::exhausted, "another process writes the journal " + directory +
                                       ": give each worker a directory of its own");
  }
  return lock;
}

}  // namespace

Result<JournalWriter> JournalWriter::open(const WriterOptions& options,
                                          const SessionRecord& session) {
  if (options.directory.empty()) return Status(Code::invalid, "the journal's directory is empty");
  if (options.segment_bytes == 0) {
    return Status(Code::invalid, "segment_bytes is 0; it must be at least 1");
  }
  if (::mkdir(options.directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return os_error("can't make " + options.directory);
  }
  JournalWriter writer(options, session);
  writer.session_body_ = encode_record(session);
  EXACT_ASSIGN(writer.directory_, open_file(options.directory, O_RDONLY | O_DIRECTORY));
  EXACT_ASSIGN(writer.lock_, lock_directory(options.directory));
  EXACT_RETURN_IF_ERROR(writer.recover());
  return writer;
}

// Finds where the records go on, and cuts what a dead writer did not finish.
Status JournalWriter::recover() {
  EXACT_ASSIGN(std::vector<Segment> segments, list_segments(options_.directory));
  if (!segments.empty()) {
    Segment& last = segments.back();
    EXACT_ASSIGN(SegmentReader reader, SegmentReader::open(last.path));
    report_.next_id = last.first_id;
    for (;;) {
      const Result<std::optional<RawFrame>> frame = reader.next();
      if (!frame) {
        return Status(frame.status().code(),
                      frame.status().message() +
                          ": the journal can't be gone on with; nothing was changed. Use another "
                          "directory, or move this segment away and keep it");
      }
      if (!*frame) break;
      const FrameHeader& header = (*frame)->header;
      report_.next_id = header.record_id + (header.kind == RecordKind::session ? 0 : 1);
    }
    last.bytes = reader.offset();
    if (reader.torn()) {
      EXACT_RETURN_IF_ERROR(cut(last, reader.torn()->offset, reader.torn()->bytes));
    }
    // Without a record it would have the name of the segment to come.
    if (report_.next_id == last.first_id) {
      if (::unlink(last.path.c_str()) != 0) return os_error("can't remove " + last.path);
      segments.pop_back();
    }
  }
  for (const Segment& segment : segments) total_bytes_ += segment.bytes;
  old_.assign(segments.begin(), segments.end());
  report_.segments = segments.size();
  report_.bytes = total_bytes_;
  return {};
}

Status JournalWriter::cut(const Segment& last, uint64_t offset, uint64_t bytes) {
  report_.cut_from = last.path;
  report_.cut_bytes = bytes;
  EXACT_ASSIGN(ipc::FileDescriptor file, open_file(last.path, O_RDWR));
  if (bytes > 0) {
    report_.cut_into = last.path + ".cut-" + std::to_string(offset);
    // The same tail again only where a cut was interrupted: then these are the same bytes.
    EXACT_ASSIGN(ipc::FileDescriptor into,
                 open_file(report_.cut_into, O_WRONLY | O_CREAT | O_TRUNC));
    std::string block(kBufferBytes, '\0');
    for (uint64_t at = offset; at < offset + bytes;) {
      const ssize_t got =
          ::pread(file.get(), block.data(), block.size(), static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return os_error("can't read " + last.path);
      const std::string_view read(block.data(), static_cast<size_t>(got));
      EXACT_RETURN_IF_ERROR(write_all(into.get(), read, report_.cut_into));
      at += read.size();
    }
    if (::fdatasync(into.get()) != 0) return os_error("can't sync " + report_.cut_into);
    if (::fsync(directory_.get()) != 0) return os_error("can't sync " + options_.directory);
  }
  if (::ftruncate(file.get(), static_cast<off_t>(offset)) != 0) {
    return os_error("can't cut " + last.path);
  }
  if (::fdatasync(file.get()) != 0) return os_error("can't sync " + last.path);
  return {};
}

Status JournalWriter::fail(Status status) {
  if (failure_.is_ok()) failure_ = std::move(status);
  return failure_;
}

Status JournalWriter::make_room(uint64_t bytes) {
  if (options_.max_bytes == 0) return {};
  while (options_.remove_oldest && !old_.empty() && total_bytes_ + bytes > options_.max_bytes) {
    const Segment& oldest = old_.front();
    if (::unlink(oldest.path.c_str()) != 0 && errno != ENOENT) {
      return os_error("can't remove " + oldest.path);
    }
    total_bytes_ -= oldest.bytes;
    old_.pop_front();
  }
  if (total_bytes_ + bytes <= options_.max_bytes) return {};
  return Status(Code::exhausted,
                "the journal " + options_.directory + " has reached its limit of " +
                    std::to_string(options_.max_bytes) +
                    " bytes: move old segments away, raise it, or let the oldest be removed");
}

Status JournalWriter::start_segment(uint64_t first_id, uint64_t time_us) {
  if (file_.is_open()) {
    EXACT_RETURN_IF_ERROR(sync());
    old_.push_back(current_);
  }
  current_ = {options_.directory + "/" + segment_name(first_id), first_id, 0};
  EXACT_ASSIGN(file_, open_file(current_.path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND));
  append_frame(buffer_, RecordKind::session, first_id, time_us, session_body_);
  total_bytes_ += buffer_.size();
  // Its name must be there before a record in it counts as durable.
  if (::fsync(directory_.get()) != 0) return os_error("can't sync " + options_.directory);
  return {};
}

Status JournalWriter::append(RecordKind kind, uint64_t record_id, uint64_t time_us,
                             std::string_view body) {
  if (!failure_.is_ok()) return failure_;
  if (body.size() > kMaxBodyBytes) {
    return fail(Status(Code::exhausted, "record " + std::to_string(record_id) + " has " +
                                            std::to_string(body.size()) + " bytes, the limit is " +
                                            std::to_string(kMaxBodyBytes)));
  }
  const uint64_t bytes = kFrameBytes + body.size();
  const bool is_full =
      file_.is_open() && current_.bytes + buffer_.size() >= options_.segment_bytes;
  const bool begins = !file_.is_open() || is_full;
  const uint64_t all = bytes + (begins ? kFrameBytes + session_body_.size() : 0);
  if (is_full) {
    if (Status status = flush(); !status.is_ok()) return status;
  }
  if (Status status = make_room(all); !status.is_ok()) return fail(std::move(status));
  if (begins) {
    if (Status status = start_segment(record_id, time_us); !status.is_ok()) {
      return fail(std::move(status));
    }
  }
  append_frame(buffer_, kind, record_id, time_us, body);
  total_bytes_ += bytes;
  if (buffer_.size() >= kBufferBytes) return flush();
  return {};
}

Status JournalWriter::write_buffer() {
  if (buffer_.empty()) return {};
  const Status written = write_all(file_.get(), buffer_, current_.path);
  if (!written.is_ok()) {
    // A disk that is full holds part of a record now: leave only what was whole before.
    (void)::ftruncate(file_.get(), static_cast<off_t>(current_.bytes));
    return written;
  }
  current_.bytes += buffer_.size();
  buffer_.clear();
  is_dirty_ = true;
  return {};
}

Status JournalWriter::flush() {
  if (!failure_.is_ok()) return failure_;
  if (Status status = write_buffer(); !status.is_ok()) return fail(std::move(status));
  return {};
}

Status JournalWriter::sync() {
  EXACT_RETURN_IF_ERROR(flush());
  if (!is_dirty_) return {};
  if (::fdatasync(file_.get()) != 0) return fail(os_error("can't sync " + current_.path));
  is_dirty_ = false;
  return {};
}

}  // namespace exact::journal
