// record_codec.h owns a record's bytes: the bodies of ipc/bounded_archive.h, every field with its
// name. Decoding allocates no more than a small multiple of the bytes that came.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "journal/record.h"
#include "kernels/base/result.h"

namespace exact::journal {

// Explicitly instantiated in record_codec.cc for every struct of record.h.
template <class Record>
std::string encode_record(const Record& record);

// corrupt: truncated, lengths that lie, trailing bytes; invalid: an unknown field (by name).
template <class Record>
Result<Record> decode_record(std::span<const std::byte> body);

}  // namespace exact::journal
