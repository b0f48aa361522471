// device_step.h owns what kernels read of a step: whose rows they are, at which positions, in which
// pages. It lies in device memory at addresses that stay, so that a recorded step can be repeated.
#pragma once

#include <cstdint>

namespace exact::cuda {

// Rows [first_row, first_row + row_count) of the step, at positions first_position, ...; page i of
// the sequence is pages[first_page + i]. row_count 0: nobody, the kernels skip it.
struct DeviceSequence {
  int32_t first_row;
  int32_t row_count;
  int32_t first_position;
  int32_t first_page;
};

// Rows [first, first + kQueryTile) of a sequence that has more than one row: work of one block of
// prefill attention. sequence -1: nobody.
struct QueryTile {
  int32_t sequence;
  int32_t first;  // row within the sequence's rows of this step
};
inline constexpr int kQueryTile = 128;

// Sequences with one row come first. Pointers are device memory.
struct DeviceStep {
  int32_t rows = 0;                       // T, with padding rows at the end
  int32_t decode_sequences = 0;           // of one row each: sequences[0, decode_sequences)
  int32_t query_tiles = 0;                // of all other sequences, the longest context first
  int32_t max_decode_context = 0;         // at least position + 1 of every decode row
  const int32_t* ids = nullptr;           // (T); 0 in padding rows
  const int32_t* positions = nullptr;     // (T); 0 in padding rows
  const int32_t* row_sequence = nullptr;  // (T): index of the row's sequence; -1: padding
  const DeviceSequence* sequences = nullptr;
  const QueryTile* tiles = nullptr;
  const int32_t* pages = nullptr;
};

}  // namespace exact::cuda
