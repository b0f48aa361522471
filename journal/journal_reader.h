// journal_reader.h owns reading a whole journal, its segments in order. It writes nothing: a torn
// tail is left where it is and told of. A journal that a worker is writing may be read; what it
// writes after open() is not seen, and its last record may look torn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "journal/record.h"
#include "journal/segment.h"
#include "journal/segment_reader.h"
#include "kernels/base/result.h"

namespace exact::journal {

struct Record {
  uint64_t id = 0;       // of a session: that of the record after it
  uint64_t time_us = 0;  // since 1970, UTC
  std::string path;      // the segment
  uint64_t offset = 0;   // of the frame in it
  uint64_t bytes = 0;    // of the frame, header and body
  std::variant<SessionRecord, CompletionRecord, UpdateRecord, ScoreRecord, DropRecord> body;
};

class JournalReader {
 public:
  // A journal's directory, or one segment of it. not_found: neither; device.
  static Result<JournalReader> open(const std::string& path);

  // The next record, sessions included (one opens each segment), or nothing at the end. An error
  // names file and offset. corrupt, invalid, unsupported: damage, or records that are missing
  // between two others; call again to go on behind it. Any other code: give up.
  Result<std::optional<Record>> next();
  // True of the codes after which next() goes on.
  static bool is_damage(const Status& status);

  const std::vector<Segment>& segments() const { return segments_; }
  // At the end of the last segment: a record that was never written to its end. Known once next()
  // has said that nothing follows.
  const std::optional<TornTail>& torn_tail() const { return torn_; }

 private:
  explicit JournalReader(std::vector<Segment> segments) : segments_(std::move(segments)) {}
  Status end_segment();
  Result<std::optional<Record>> decode(RawFrame frame);

  std::vector<Segment> segments_;
  size_t next_segment_ = 0;
  std::optional<SegmentReader> reader_;
  std::optional<RawFrame> pending_;  // read already, behind a gap that was told of
  uint64_t expected_id_ = 0;         // 0: any will do
  std::optional<TornTail> torn_;
};

}  // namespace exact::journal
