#include "journal/record_codec.h"

#include <new>

#include "ipc/bounded_archive.h"

namespace exact::journal {

std::string_view record_kind_name(RecordKind kind) {
  switch (kind) {
    case RecordKind::session:
      return "session";
    case RecordKind::completion:
      return "completion";
    case RecordKind::update:
      return "update";
    case RecordKind::score:
      return "score";
    case RecordKind::drops:
      return "drops";
  }
  return "unknown";
}

template <class Record>
std::string encode_record(const Record& record) {
  std::string body;
  ipc::BodyWriter writer(body);
  writer(record);
  return body;
}

template <class Record>
Result<Record> decode_record(std::span<const std::byte> body) {
  const std::string kind(record_kind_name(Record::kKind));
  try {
    Record record;
    ipc::BodyReader reader(body);
    reader(record);
    reader.expect_end();
    return record;
  } catch (const ipc::DecodeError& error) {
    return Status(error.code(), kind + " record: " + error.what());
  } catch (const std::bad_alloc&) {
    return Status(Code::exhausted, kind + " record: no memory for a body of " +
                                       std::to_string(body.size()) + " bytes");
  }
}

#define EXACT_INSTANTIATE(Record)                            \
  template std::string encode_record<Record>(const Record&); \
  template Result<Record> decode_record<Record>(std::span<const std::byte>);
EXACT_INSTANTIATE(SessionRecord)
EXACT_INSTANTIATE(CompletionRecord)
EXACT_INSTANTIATE(UpdateRecord)
EXACT_INSTANTIATE(ScoreRecord)
EXACT_INSTANTIATE(DropRecord)
#undef EXACT_INSTANTIATE

}  // namespace exact::journal
