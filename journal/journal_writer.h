// journal_writer.h owns a journal's directory while it is written: the lock that keeps a second
// writer out, the segment in hand, rotation and the limit on all of them. One thread;
// async_journal.h puts a queue before it.
//
// open() never writes into an old segment: a torn tail is cut off the last one, its bytes kept in a
// file beside it, and the first record begins a new one.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "ipc/file_descriptor.h"
#include "journal/frame.h"
#include "journal/record.h"
#include "journal/segment.h"
#include "kernels/base/result.h"

namespace exact::journal {

struct WriterOptions {
  std::string directory;  // made, with mode 0700, where there is none; its parent must be there
  uint64_t segment_bytes = uint64_t{256} << 20;  // a segment ends with the record that reaches it
  uint64_t max_bytes = 0;                        // of all segments; 0: no limit
  bool remove_oldest = false;                    // at the limit; false: it ends with an error
};

// What open() found.
struct OpenReport {
  uint64_t next_id = 1;
  uint64_t segments = 0;
  uint64_t bytes = 0;      // of all segments, after the cut
  uint64_t cut_bytes = 0;  // of a torn tail
  std::string cut_from;    // the segment that had it; empty: none was torn
  std::string cut_into;    // where its bytes are now; empty: there were none
};

class JournalWriter {
 public:
  // exhausted: another process writes here; corrupt: the last segment is damaged before its end;
  // invalid, device: the directory, by what is wrong with it.
  static Result<JournalWriter> open(const WriterOptions& options, const SessionRecord& session);

  const OpenReport& report() const { return report_; }

  // Takes the next record into a buffer; ids must be consecutive from report().next_id on. May
  // write, rotate and sync. After any error the journal has failed: every later call returns it.
  Status append(RecordKind kind, uint64_t record_id, uint64_t time_us, std::string_view body);
  Status flush();  // hands the buffer to the operating system: survives this process's end
  Status sync();   // flush, and fdatasync: survives the machine's
  const Status& failure() const { return failure_; }

 private:
  JournalWriter(const WriterOptions& options, const SessionRecord& session)
      : options_(options), session_(session) {}
  Status recover();
  Status cut(const Segment& last, uint64_t offset, uint64_t bytes);
  Status start_segment(uint64_t first_id, uint64_t time_us);
  Status make_room(uint64_t bytes);
  Status write_buffer();
  Status fail(Status status);

  WriterOptions options_;
  std::string session_body_;
  SessionRecord session_;
  OpenReport report_;
  ipc::FileDescriptor lock_;
  ipc::FileDescriptor directory_;
  std::deque<Segment> old_;    // ended segments, oldest first
  ipc::FileDescriptor file_;   // the segment in hand; not open before the first record
  Segment current_;            // bytes: those written
  std::string buffer_;         // not yet written
  uint64_t total_bytes_ = 0;   // of all segments, with the buffer
  bool is_dirty_ = false;      // written since the last fdatasync
  Status failure_;
};

}  // namespace exact::journal
