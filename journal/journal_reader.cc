#include "journal/journal_reader.h"

#include <filesystem>
#include <span>
#include <system_error>
#include <utility>

#include "journal/record_codec.h"

namespace exact::journal {
namespace {

std::string place(const std::string& path, uint64_t offset) {
  return path + ", byte " + std::to_string(offset) + ": ";
}

template <class T>
Status decode_into(const RawFrame& frame, Record& record) {
  EXACT_ASSIGN(record.body, decode_record<T>(std::as_bytes(std::span(frame.body))));
  return {};
}

Status decode_body(const RawFrame& frame, Record& record) {
  switch (frame.header.kind) {
    case RecordKind::session:
      return decode_into<SessionRecord>(frame, record);
    case RecordKind::completion:
      return decode_into<CompletionRecord>(frame, record);
    case RecordKind::update:
      return decode_into<UpdateRecord>(frame, record);
    case RecordKind::score:
      return decode_into<ScoreRecord>(frame, record);
    case RecordKind::drops:
      return decode_into<DropRecord>(frame, record);
  }
  return Status(Code::unsupported, "a record of kind " +
                                       std::to_string(static_cast<uint16_t>(frame.header.kind)) +
                                       ", which this release does not know");
}

}  // namespace

bool JournalReader::is_damage(const Status& status) {
  return status.code() == Code::corrupt || status.code() == Code::invalid ||
         status.code() == Code::unsupported;
}

Result<JournalReader> JournalReader::open(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) {
    const uint64_t bytes = std::filesystem::file_size(path, error);
    return JournalReader({Segment{path, 0, bytes}});
  }
  EXACT_ASSIGN(std::vector<Segment> segments, list_segments(path));
  if (segments.empty()) {
    return Status(Code::not_found, path + " has no journal: its files end in .exj");
  }
  return JournalReader(std::move(segments));
}

// Ok, or the damage that the segment's end is.
Status JournalReader::end_segment() {
  const std::optional<TornTail> torn = reader_->torn();
  reader_.reset();
  if (!torn) return {};
  if (next_segment_ == segments_.size()) {
    torn_ = torn;
    return {};
  }
  expected_id_ = 0;
  return Status(Code::corrupt, place(torn->path, torn->offset) + torn->why +
                                   ", and another segment follows");
}

Result<std::optional<Record>> JournalReader::decode(RawFrame frame) {
  const bool is_session = frame.header.kind == RecordKind::session;
  expected_id_ = frame.header.record_id + (is_session ? 0 : 1);
  Record record;
  record.id = frame.header.record_id;
  record.time_us = frame.header.time_us;
  record.path = reader_->path();
  record.offset = frame.offset;
  record.bytes = kFrameBytes + frame.body.size();
  const Status status = decode_body(frame, record);
  if (status.is_ok()) return std::optional<Record>(std::move(record));
  return Status(status.code(), place(record.path, record.offset) + status.message());
}

Result<std::optional<Record>> JournalReader::next() {
  if (pending_) {
    RawFrame frame = std::move(*pending_);
    pending_.reset();
    return decode(std::move(frame));
  }
  for (;;) {
    if (!reader_) {
      if (next_segment_ == segments_.size()) return std::optional<Record>();
      const std::string path = segments_[next_segment_++].path;
      EXACT_ASSIGN(reader_, SegmentReader::open(path));
    }
    Result<std::optional<RawFrame>> read = reader_->next();
    if (!read) {
      expected_id_ = 0;  // the gap is told of with the damage
      return read.status();
    }
    if (!*read) {
      EXACT_RETURN_IF_ERROR(end_segment());
      continue;
    }
    RawFrame frame = std::move(**read);
    const uint64_t id = frame.header.record_id;
    std::string wrong;
    if ((frame.offset == 0) != (frame.header.kind == RecordKind::session)) {
      wrong = frame.offset == 0 ? "a segment must begin with its session" : "a second session";
    } else if (expected_id_ != 0 && id != expected_id_) {
      wrong = "record " + std::to_string(id) + " where " + std::to_string(expected_id_);
      wrong += " belongs";
    }
    if (wrong.empty()) return decode(std::move(frame));
    const std::string where = place(reader_->path(), frame.offset);
    pending_ = std::move(frame);
    return Status(Code::corrupt, where + wrong);
  }
}

}  // namespace exact::journal
