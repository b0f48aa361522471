#include "kernels/cuda/step_tables.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"

namespace exact::cuda {
namespace {

constexpr int32_t kShortestContext = 512;
constexpr size_t kFirstWords = size_t{1} << 16;
// Tables start at multiples of 16 bytes.
constexpr size_t kTableWords = 4;

size_t table_words(size_t words) {
  return (words + kTableWords - 1) / kTableWords * kTableWords;
}

int32_t end_position(const SequenceChunk& chunk) {
  return chunk.first_position + chunk.row_count;
}

}  // namespace

int64_t padded_decode_rows(int64_t rows) {
  if (rows > kMaxRecordedRows) return rows;
  if (rows > 64) return (rows + 15) / 16 * 16;
  if (rows > 8) return (rows + 7) / 8 * 8;
  int64_t padded = 1;
  while (padded < rows) padded *= 2;
  return padded;
}

int32_t padded_context(int32_t positions) {
  int64_t padded = kShortestContext;
  while (padded < positions) padded *= 2;
  return static_cast<int32_t>(std::min<int64_t>(padded, INT32_MAX));
}

// Sequences of one row first, in the order of the step; then the others, the longest first.
void StepTables::sort_sequences(const StepRows& step) {
  order_.clear();
  for (const SequenceChunk& chunk : step.chunks) {
    if (chunk.row_count == 1) order_.push_back(&chunk);
  }
  device_.decode_sequences = static_cast<int32_t>(order_.size());
  for (const SequenceChunk& chunk : step.chunks) {
    EXACT_CHECK(chunk.row_count >= 1, "a chunk without rows");
    if (chunk.row_count > 1) order_.push_back(&chunk);
  }
  int32_t longest = 0;
  for (int32_t i = 0; i < device_.decode_sequences; i++) {
    longest = std::max(longest, end_position(*order_[static_cast<size_t>(i)]));
  }
  device_.max_decode_context = padded_context(longest);
  tiles_.clear();
  for (size_t i = static_cast<size_t>(device_.decode_sequences); i < order_.size(); i++) {
    for (int32_t first = 0; first < order_[i]->row_count; first += kQueryTile) {
      tiles_.push_back({static_cast<int32_t>(i), first});
    }
  }
  const auto context = [this](const QueryTile& tile) {
    return order_[static_cast<size_t>(tile.sequence)]->first_position + tile.first;
  };
  std::stable_sort(tiles_.begin(), tiles_.end(),
                   [&](const QueryTile& a, const QueryTile& b) { return context(a) > context(b); });
  device_.query_tiles = static_cast<int32_t>(tiles_.size());
}

Status StepTables::reserve(size_t words, cudaStream_t stream) {
  if (copied_.data() == nullptr) {
    cudaEvent_t event = nullptr;
    EXACT_RETURN_IF_ERROR(
        cuda_status(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event"));
    copied_ =
        Buffer(event, 0, [](void* data) { cudaEventDestroy(static_cast<cudaEvent_t>(data)); });
  } else {
    EXACT_RETURN_IF_ERROR(cuda_status(
        cudaEventSynchronize(static_cast<cudaEvent_t>(copied_.data())), "the last step's tables"));
  }
  if (words * sizeof(int32_t) <= pinned_words_.bytes()) return {};
  EXACT_RETURN_IF_ERROR(cuda_status(cudaStreamSynchronize(stream), "the steps before"));
  size_t grown = kFirstWords;
  while (grown < words) grown *= 2;
  EXACT_ASSIGN(device_words_, allocate_device(grown * sizeof(int32_t)));
  EXACT_ASSIGN(pinned_words_, allocate_pinned(grown * sizeof(int32_t)));
  generation_++;
  return {};
}

Status StepTables::set(const StepRows& step, cudaStream_t stream) {
  EXACT_CHECK(step.ids.size() == step.positions.size(), "every row has a position");
  sort_sequences(step);
  const auto rows = static_cast<int64_t>(step.ids.size());
  decode_only_ = device_.query_tiles == 0 && rows <= kMaxRecordedRows && rows > 0;
  device_.rows = static_cast<int32_t>(decode_only_ ? padded_decode_rows(rows) : rows);
  if (decode_only_) device_.decode_sequences = device_.rows;

  const auto padded = static_cast<size_t>(device_.rows);
  const size_t sequences = std::max(order_.size(), decode_only_ ? padded : 0);
  size_t pages = 0;
  for (const SequenceChunk* chunk : order_) pages += chunk->pages.size();
  const size_t row_words = table_words(padded);
  const size_t sequence_words = table_words(sequences * sizeof(DeviceSequence) / 4);
  const size_t tile_words = table_words(tiles_.size() * sizeof(QueryTile) / 4);
  const size_t words = 3 * row_words + sequence_words + tile_words + table_words(pages);
  EXACT_RETURN_IF_ERROR(reserve(words, stream));

  auto* host = static_cast<int32_t*>(pinned_words_.data());
  auto* device = static_cast<int32_t*>(device_words_.data());
  std::memset(host, 0, words * sizeof(int32_t));
  size_t offset = 0;
  const auto next_table = [&](size_t table) {
    const size_t begin = offset;
    offset += table;
    return begin;
  };
  const size_t ids = next_table(row_words);
  const size_t positions = next_table(row_words);
  const size_t owners = next_table(row_words);
  const size_t sequence_table = next_table(sequence_words);
  const size_t tile_table = next_table(tile_words);
  const size_t page_table = next_table(table_words(pages));

  std::copy(step.ids.begin(), step.ids.end(), host + ids);
  std::copy(step.positions.begin(), step.positions.end(), host + positions);
  std::fill_n(host + owners, padded, -1);
  int32_t first_page = 0;
  for (size_t i = 0; i < order_.size(); i++) {
    const SequenceChunk& chunk = *order_[i];
    EXACT_CHECK(chunk.first_row >= 0 && chunk.first_row + chunk.row_count <= device_.rows,
                "a chunk outside the step");
    const DeviceSequence sequence{static_cast<int32_t>(chunk.first_row), chunk.row_count,
                                  chunk.first_position, first_page};
    std::memcpy(host + sequence_table + i * sizeof sequence / 4, &sequence, sizeof sequence);
    std::fill_n(host + owners + chunk.first_row, chunk.row_count, static_cast<int32_t>(i));
    std::copy(chunk.pages.begin(), chunk.pages.end(), host + page_table + first_page);
    first_page += static_cast<int32_t>(chunk.pages.size());
  }
  if (!tiles_.empty()) {
    std::memcpy(host + tile_table, tiles_.data(), tiles_.size() * sizeof(QueryTile));
  }
  device_.ids = device + ids;
  device_.positions = device + positions;
  device_.row_sequence = device + owners;
  device_.sequences = reinterpret_cast<const DeviceSequence*>(device + sequence_table);
  device_.tiles = reinterpret_cast<const QueryTile*>(device + tile_table);
  device_.pages = device + page_table;
  EXACT_RETURN_IF_ERROR(cuda_status(
      cudaMemcpyAsync(device, host, words * sizeof(int32_t), cudaMemcpyHostToDevice, stream),
      "the step's tables"));
  return cuda_status(cudaEventRecord(static_cast<cudaEvent_t>(copied_.data()), stream),
                     "the step's tables");
}

}  // namespace exact::cuda
