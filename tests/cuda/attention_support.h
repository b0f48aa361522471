// attention_support.h owns what the tests of attention share: sequences on the host with the
// reference's answer, and the same sequences on the device as a paged cache and a step.
//
// Pages lie in random order among pages that nobody owns; whatever no token has written is NaN, and
// so are padding rows. Rows of query and out are wider than their heads, with NaN between.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/reference/reference.h"
#include "tests/cuda/device.h"

namespace exact::cuda_test {

inline constexpr uint16_t kNan = 0x7fff;
inline constexpr uint16_t kUntouched = 0x5a5a;  // what `out` holds before a launch

// One sequence of a step: its new rows stand at positions [first_position, first_position + rows).
// keys, values: (first_position + rows, kv_heads * E); query: (rows, query_heads * E).
struct HostSequence {
  int32_t rows = 0;
  int32_t first_position = 0;
  std::vector<uint16_t> query, keys, values;

  int32_t context() const { return first_position + rows; }
};

struct HostAttention {
  reference::AttentionShape shape;
  int32_t page_size = 16;
  int32_t padding_rows = 0;
  std::vector<HostSequence> sequences;  // those of one row first
  std::string about;

  size_t query_width() const {
    return static_cast<size_t>(shape.query_heads) * static_cast<size_t>(shape.head_width);
  }
  size_t kv_width() const {
    return static_cast<size_t>(shape.kv_heads) * static_cast<size_t>(shape.head_width);
  }
  // Without padding.
  size_t rows() const {
    size_t count = 0;
    for (const HostSequence& sequence : sequences) count += static_cast<size_t>(sequence.rows);
    return count;
  }
};

// A row count and a first position, for each sequence.
using SequenceShapes = std::vector<std::pair<int32_t, int32_t>>;

// Uniform queries and keys in (-range, range), values in (-1, 1), from the seed.
inline HostAttention draw_attention(const reference::AttentionShape& shape, int32_t page_size,
                                    SequenceShapes shapes, double range = 3.0,
                                    uint64_t seed = kSeed) {
  std::stable_partition(shapes.begin(), shapes.end(), [](const auto& s) { return s.first == 1; });
  HostAttention host{shape, page_size, 3, {}, {}};
  host.about = "heads " + std::to_string(shape.query_heads) + "/" + std::to_string(shape.kv_heads) +
               " of " + std::to_string(shape.head_width) + ", pages of " +
               std::to_string(page_size) + ", seed " + std::to_string(seed) + ", rows@position";
  const contract::HashStream query("attention.query", seed), keys("attention.keys", seed),
      values("attention.values", seed);
  uint64_t next_query = 0, next_key = 0;
  for (const auto& [rows, first_position] : shapes) {
    HostSequence sequence{rows, first_position, {}, {}, {}};
    sequence.query.resize(static_cast<size_t>(rows) * host.query_width());
    sequence.keys.resize(static_cast<size_t>(sequence.context()) * host.kv_width());
    sequence.values.resize(sequence.keys.size());
    for (uint16_t& x : sequence.query) x = query.uniform_bf16(next_query++, -range, range);
    for (size_t i = 0; i < sequence.keys.size(); i++, next_key++) {
      sequence.keys[i] = keys.uniform_bf16(next_key, -range, range);
      sequence.values[i] = values.uniform_bf16(next_key, -1.0, 1.0);
    }
    host.about += " " + std::to_string(rows) + "@" + std::to_string(first_position);
    host.sequences.push_back(std::move(sequence));
  }
  return host;
}

// The reference's rows of every sequence, (rows, query_heads * E); all cores share them by turns.
inline std::vector<uint16_t> reference_rows(const HostAttention& host) {
  const size_t width = host.query_width();
  std::vector<uint16_t> out(host.rows() * width);
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  const auto run = [&](size_t turn) {
    size_t row = 0;
    for (const HostSequence& sequence : host.sequences) {
      for (int32_t i = 0; i < sequence.rows; i++, row++) {
        if (row % threads != turn) continue;
        reference::attention(
            host.shape, std::span(sequence.query).subspan(static_cast<size_t>(i) * width, width),
            sequence.first_position + i, sequence.keys, sequence.values,
            std::span(out).subspan(row * width, width));
      }
    }
  };
  std::vector<std::thread> workers;
  for (size_t turn = 1; turn < threads; turn++) workers.emplace_back(run, turn);
  run(0);
  for (std::thread& worker : workers) worker.join();
  return out;
}

// The same on the device. Not movable: `inputs()` points into it.
class DeviceAttention {
 public:
  explicit DeviceAttention(const HostAttention& host) : host_(host) {
    place_rows();
    place_pages();
    const size_t rows = static_cast<size_t>(step_.rows);
    std::vector<uint16_t> query(rows * stride(), kNan);
    size_t row = 0;
    for (const HostSequence& sequence : host.sequences) {
      for (size_t i = 0; i < static_cast<size_t>(sequence.rows); i++, row++) {
        std::copy_n(sequence.query.begin() + static_cast<std::ptrdiff_t>(i * host.query_width()),
                    host.query_width(),
                    query.begin() + static_cast<std::ptrdiff_t>(row * stride()));
      }
    }
    query_ = std::make_unique<DeviceVector<uint16_t>>(query);
    reset();
  }

  cuda::AttentionInputs inputs() const {
    cuda::AttentionInputs inputs;
    inputs.query = query_->data();
    inputs.query_stride = static_cast<int64_t>(stride());
    inputs.out = out_->data();
    inputs.out_stride = static_cast<int64_t>(stride());
    inputs.query_heads = host_.shape.query_heads;
    inputs.pages = pages_;
    inputs.step = step_;
    return inputs;
  }

  // Forgets what the last launch wrote.
  void reset() {
    out_ = std::make_unique<DeviceVector<uint16_t>>(
        std::vector<uint16_t>(static_cast<size_t>(step_.rows) * stride(), kUntouched));
  }

  // (rows, query_heads * E) without padding; a test failure when anything else was written.
  std::vector<uint16_t> rows() const {
    const std::vector<uint16_t> all = out_->to_host();
    std::vector<uint16_t> rows;
    size_t strays = 0;
    for (size_t row = 0; row < static_cast<size_t>(step_.rows); row++) {
      const auto start = all.begin() + static_cast<std::ptrdiff_t>(row * stride());
      const size_t width = row < host_.rows() ? host_.query_width() : 0;
      const auto end = start + static_cast<std::ptrdiff_t>(width);
      rows.insert(rows.end(), start, end);
      strays +=
          static_cast<size_t>(std::count_if(end, start + static_cast<std::ptrdiff_t>(stride()),
                                            [](uint16_t x) { return x != kUntouched; }));
    }
    EXPECT_EQ(strays, 0u) << "elements outside the sequences' rows were written; " << host_.about;
    return rows;
  }

  // The first row that is not a decode sequence's.
  size_t first_prefill_row() const { return static_cast<size_t>(step_.decode_sequences); }

 private:
  size_t stride() const { return host_.query_width() + 24; }

  // Rows, positions, sequences and query tiles.
  void place_rows() {
    std::vector<int32_t> ids, positions, row_sequence;
    std::vector<cuda::QueryTile> tiles;
    int32_t first_page = 0;
    for (const HostSequence& sequence : host_.sequences) {
      const auto index = static_cast<int32_t>(sequences_.size());
      sequences_.push_back({static_cast<int32_t>(positions.size()), sequence.rows,
                            sequence.first_position, first_page});
      first_page += pages_of(sequence);
      for (int32_t i = 0; i < sequence.rows; i++) {
        positions.push_back(sequence.first_position + i);
        row_sequence.push_back(index);
      }
      if (sequence.rows == 1) {
        step_.decode_sequences++;
        step_.max_decode_context = std::max(step_.max_decode_context, sequence.context());
        continue;
      }
      for (int32_t first = 0; first < sequence.rows; first += cuda::kQueryTile)
        tiles.push_back({index, first});
    }
    const auto last_position = [&](const cuda::QueryTile& tile) {
      const cuda::DeviceSequence& s = sequences_[static_cast<size_t>(tile.sequence)];
      return s.first_position + std::min(tile.first + cuda::kQueryTile, s.row_count);
    };
    std::stable_sort(tiles.begin(), tiles.end(), [&](const auto& a, const auto& b) {
      return last_position(a) > last_position(b);
    });
    if (!tiles.empty()) tiles.push_back({-1, 0});  // nobody's, and nobody may mind
    for (int32_t i = 0; i < host_.padding_rows; i++) {
      positions.push_back(0);
      row_sequence.push_back(-1);
    }
    ids.resize(positions.size());
    step_.rows = static_cast<int32_t>(positions.size());
    step_.query_tiles = static_cast<int32_t>(tiles.size());
    ids_ = std::make_unique<DeviceVector<int32_t>>(ids);
    positions_ = std::make_unique<DeviceVector<int32_t>>(positions);
    row_sequence_ = std::make_unique<DeviceVector<int32_t>>(row_sequence);
    device_sequences_ = std::make_unique<DeviceVector<cuda::DeviceSequence>>(sequences_);
    tiles_ = std::make_unique<DeviceVector<cuda::QueryTile>>(tiles);
    step_.ids = ids_->data();
    step_.positions = positions_->data();
    step_.row_sequence = row_sequence_->data();
    step_.sequences = device_sequences_->data();
    step_.tiles = tiles_->data();
  }

  // The cache and the page tables. The tables end where the last page is: nothing follows.
  void place_pages() {
    int32_t used = 0;
    for (const HostSequence& sequence : host_.sequences) used += pages_of(sequence);
    std::vector<int32_t> order(static_cast<size_t>(used + used / 4 + 2));
    for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int32_t>(i);
    const contract::HashStream stream("attention.pages", kSeed);
    for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[stream.bits24(i) % (i + 1)]);
    pages_.page_size = host_.page_size;
    pages_.kv_heads = host_.shape.kv_heads;
    pages_.head_width = host_.shape.head_width;
    pages_.blocks = cuda::column_blocks(host_.shape.head_width);
    std::vector<uint16_t> cache(order.size() * static_cast<size_t>(pages_.page_elements()), kNan);
    pages_.layer = cache.data();
    for (size_t i = 0; i < sequences_.size(); i++)
      fill_pages(host_.sequences[i], order.data() + sequences_[i].first_page);
    cache_ = std::make_unique<DeviceVector<uint16_t>>(cache);
    pages_.layer = cache_->data();
    order.resize(static_cast<size_t>(used));
    page_table_ = std::make_unique<DeviceVector<int32_t>>(order);
    step_.pages = page_table_->data();
  }

  void fill_pages(const HostSequence& sequence, const int32_t* pages) const {
    const int32_t width = host_.shape.head_width;
    for (int32_t position = 0; position < sequence.context(); position++) {
      const int32_t page = pages[position / host_.page_size], slot = position % host_.page_size;
      for (int32_t head = 0; head < host_.shape.kv_heads; head++) {
        const size_t from = static_cast<size_t>(position) * host_.kv_width() +
                            static_cast<size_t>(head) * static_cast<size_t>(width);
        for (int32_t column = 0; column < pages_.blocks * cuda::kColumnBlock; column++) {
          const int32_t block = column / cuda::kColumnBlock;
          const int64_t at = cuda::swizzled(slot, column % cuda::kColumnBlock);
          const bool real = column < width;  // the rest of the last column block is zeros
          const size_t index = from + static_cast<size_t>(real ? column : 0);
          pages_.keys(page, head, block)[at] = real ? sequence.keys[index] : uint16_t{0};
          pages_.values(page, head, block)[at] = real ? sequence.values[index] : uint16_t{0};
        }
      }
    }
  }

  int32_t pages_of(const HostSequence& sequence) const {
    return (sequence.context() + host_.page_size - 1) / host_.page_size;
  }

  const HostAttention& host_;
  std::vector<cuda::DeviceSequence> sequences_;
  cuda::DeviceStep step_;
  cuda::LayerPages pages_;
  std::unique_ptr<DeviceVector<uint16_t>> query_, out_, cache_;
  std::unique_ptr<DeviceVector<int32_t>> ids_, positions_, row_sequence_, page_table_;
  std::unique_ptr<DeviceVector<cuda::DeviceSequence>> device_sequences_;
  std::unique_ptr<DeviceVector<cuda::QueryTile>> tiles_;
};

// How two results differ, from row `first_row` on: the first element, both bits, and how many.
inline std::string difference(const HostAttention& host, const std::vector<uint16_t>& want,
                              const std::vector<uint16_t>& got, size_t first_row = 0) {
  if (want.size() != got.size()) return "sizes differ; " + host.about;
  const size_t width = host.query_width();
  const auto head_width = static_cast<size_t>(host.shape.head_width);
  size_t differing = 0;
  std::string first;
  for (size_t i = first_row * width; i < want.size(); i++) {
    if (want[i] == got[i] || differing++ > 0) continue;
    first = "row " + std::to_string(i / width) + ", head " +
            std::to_string(i % width / head_width) + ", column " + std::to_string(i % head_width) +
            ": want " + hex(want[i]) + ", got " + hex(got[i]);
  }
  if (differing == 0) return "";
  return std::to_string(differing) + " of " + std::to_string(want.size() - first_row * width) +
         " differ; first at " + first + "; " + host.about;
}

}  // namespace exact::cuda_test
