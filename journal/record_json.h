// record_json.h owns a record as one line of JSON, for people and scripts: every field under the
// name that record.h gives it, and before them record_id, time_us and kind. Floats have the digits
// that give the same bits back; NaN and infinities, which JSON has not, are null.
#pragma once

#include <string>

#include "journal/journal_reader.h"

namespace exact::journal {

std::string record_json(const Record& record);
RecordKind kind_of(const Record& record);

}  // namespace exact::journal
